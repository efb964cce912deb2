"""A word when it matters: failed backups, deletions and restores, damage, and no good backup for too long.

outbox.py       decides who is told, in the transaction of what happened: a job for each receiver
webhooks.py     receivers that a project's administrator registers
delivery.py     the jobs that tell a receiver, and what is known of each
posting.py      one POST to an address that somebody else chose
command.py      one run of the operator's own program
ages.py         no good backup for N hours
"""
