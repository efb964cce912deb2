"""Identity's tables, in the catalog's metadata: who may ask for what, and what was asked.

Nothing here can be used by who reads it: passwords are argon2 hashes, secrets of access keys are sealed under the root key,
tokens are digests. Times are seconds since the epoch, UTC.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, LargeBinary, Table, Text

from strongroom.catalog.tables import metadata, one_of

# The owner of projects and users; the contract calls it a domain.
account = Table(
    "account",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
)

project = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),  # 32 hex digits
    Column("account", Text, ForeignKey("account.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)
Index("uq_project_name", project.c.account, project.c.name, unique=True)

user = Table(
    "user",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", Text, ForeignKey("account.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("password", Text, nullable=True),  # an argon2id hash; NULL: signs with access keys only
    Column("administrator", Boolean, nullable=False),  # stands for the account itself: may everything in it
    Column("enabled", Boolean, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # raised by what ends tokens at once: password, permission, disabling
    Column("wrong", Integer, nullable=False),  # wrong passwords and codes in a row
    Column("locked_until", Double, nullable=True),
    Column("totp", LargeBinary, nullable=True),  # the second factor's secret, sealed; NULL: none
    Column("totp_confirmed", Boolean, nullable=False),  # a code was shown: from then on it is asked for
    Column("totp_last", BigInteger, nullable=False),  # the step of the last code taken: none is taken twice
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)
Index("uq_user_name", user.c.account, user.c.name, unique=True)

# An account's own policies. The built-in ones are code and have no row.
policy = Table(
    "policy",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", Text, ForeignKey("account.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("document", Text, nullable=False),  # JSON, version 1.1 or 5.0
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)
Index("uq_policy_name", policy.c.account, policy.c.name, unique=True)

group = Table(
    "user_group",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", Text, ForeignKey("account.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)
Index("uq_user_group_name", group.c.account, group.c.name, unique=True)

membership = Table(
    "membership",
    metadata,
    Column("group", Text, ForeignKey("user_group.id"), primary_key=True),
    Column("user", Text, ForeignKey("user.id"), primary_key=True, index=True),
)

# The policies of a user or a group, each in one project or ("") in all of the account's.
policy_grant = Table(
    "policy_grant",
    metadata,
    Column("holder", Text, primary_key=True),  # id of a user or of a group
    Column("policy", Text, primary_key=True),  # id of a row in policy, or the name of a built-in one
    Column("project", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
)

# Keys that sign. A temporary one also needs its security token, ends at a time, and dies with its user's epoch.
access_key = Table(
    "access_key",
    metadata,
    Column("id", Text, primary_key=True),  # the public half (AK)
    Column("user", Text, ForeignKey("user.id"), nullable=False, index=True),
    Column("secret", LargeBinary, nullable=False),  # the secret half (SK), sealed
    Column("enabled", Boolean, nullable=False),
    Column("wrong", Integer, nullable=False),  # wrong signatures in a row
    Column("locked_until", Double, nullable=True),
    Column("created_at", Double, nullable=False),
    Column("session", Text, nullable=True),  # SHA-256 of the security token in hex; NULL: not a temporary one
    Column("epoch", BigInteger, nullable=True),  # the user's when a temporary one was made
    Column("expires_at", Double, nullable=True, index=True),
    Column("mfa_at", Double, nullable=True),  # as token.mfa_at
)

token = Table(
    "token",
    metadata,
    Column("digest", Text, primary_key=True),  # SHA-256 of the token in hex
    Column("user", Text, ForeignKey("user.id"), nullable=False, index=True),
    Column("project", Text, ForeignKey("project.id"), nullable=True),  # NULL: scope is the account (domain)
    Column("method", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # the user's when it was issued: dead once they differ
    Column("issued_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("revoked_at", Double, nullable=True),
    Column("mfa_at", Double, nullable=True),  # when a second factor was shown for it; NULL: none was
    one_of("method", "password", "token"),
)

# What was done, by whom: append-only, a hash chain per account.
audit = Table(
    "audit",
    metadata,
    Column("account", Text, primary_key=True),  # "": of no account (an unknown caller)
    Column("sequence", BigInteger, primary_key=True),  # 1, 2, 3 … without gaps
    Column("id", Text, nullable=False, unique=True),
    Column("at", Double, nullable=False),
    Column("project", Text, nullable=True),
    Column("user", Text, nullable=True),
    Column("user_name", Text, nullable=True),
    Column("event", Text, nullable=False),  # NoSQLDeleteBackup …
    Column("level", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("resource_name", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("source", Text, nullable=False),  # address of the caller; "" for the service itself
    Column("detail", Text, nullable=False),  # JSON object
    Column("previous", Text, nullable=False),  # digest of the row before; "" for the first
    Column("digest", Text, nullable=False),  # over the row and `previous`
    one_of("level", "Normal", "Major"),
    one_of("outcome", "OK", "FAILED", "REFUSED"),
)
Index("ix_audit_project", audit.c.project, audit.c.at)
Index("ix_audit_resource", audit.c.resource_id)

# The end of each account's chain. Its row is the lock that gives audit rows their order; it is the last lock a transaction takes.
audit_head = Table(
    "audit_head",
    metadata,
    Column("account", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
)
