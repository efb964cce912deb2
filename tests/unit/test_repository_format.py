"""The format on disk, version 1: pinned byte for byte, and read by a second reader that shares no code with the first.

If a test here fails, stores that exist cannot be read any more: raise the format's version instead of changing the test.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.identity.secrets import Sealer
from strongroom.repository import names
from strongroom.repository.codec import Encoder
from strongroom.repository.keys import (
    GraveFacts,
    RootKey,
    seal_catalog,
    seal_closed,
    seal_grave,
    seal_lineage_keys,
    seal_owner,
    seal_trail,
)
from strongroom.repository.lines import LineWriter
from strongroom.repository.log import LogHeader, seal_log
from strongroom.repository.pack import read_index
from support.repository import LINEAGE, Vault, noise, rows

ROOT = bytes(range(32))
ENTRIES = {"rows": rows(12_000), "noise": noise(30_000), "empty": b""}


def hkdf(key: bytes, purpose: str) -> bytes:
    """HKDF-SHA256 for 32 bytes, by its definition."""
    extracted = hmac.new(bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, b"strongroom 1 " + purpose.encode() + b"\1", hashlib.sha256).digest()


def open_box(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """nonce ‖ ciphertext ‖ tag under the box's own encryption key."""
    return AESGCM(hkdf(key, "box encryption")).decrypt(sealed[:12], sealed[12:], about)


def unframe(frame: bytes) -> bytes:
    """codec │ length │ payload."""
    codec, size = struct.unpack(">BI", frame[:5])
    plain = frame[5:] if codec == 0 else zstandard.ZstdDecompressor().decompress(frame[5:], max_output_size=size)
    assert len(plain) == size
    return plain


def open_document(magic: bytes, key: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
    """Clear header and sealed content."""
    found, version, length = struct.unpack(">4sHI", data[:10])
    assert (found, version) == (magic, 1)
    return cbor2.loads(data[10 : 10 + length]), open_box(key, data[10 + length :], data[: 10 + length])


def planes(data: bytes, width: int, count: int) -> list[int]:
    """A column of numbers from its planes."""
    return [int.from_bytes(bytes(data[plane * count + at] for plane in range(width)), "big") for at in range(count)]


def summed(differences: list[int]) -> list[int]:
    """Numbers from their differences modulo 2^32."""
    out, last = [], 0
    for one in differences:
        last = (last + one) % (1 << 32)
        out.append(last)
    return out


def read_records(data: bytes) -> list[tuple[bytes, int, int, int]]:
    """(hash, pack, number, plain length) of a page."""
    count = int.from_bytes(data[:4], "big")
    hashes = [data[4 + 16 * at : 20 + 16 * at] for at in range(count)]
    at = 4 + 16 * count
    packs = planes(data[at:], 8, count)
    numbers = summed(planes(data[at + 8 * count :], 4, count))
    plains = planes(data[at + 12 * count :], 4, count)
    assert len(data) == at + 20 * count
    return list(zip(hashes, packs, numbers, plains, strict=True))


class SecondReader:
    """Reads a lineage from its store and root key alone, as the document of the format says."""

    def __init__(self, objects: dict[str, bytes], root_key: bytes) -> None:
        sealed_keys = next(data for name, data in objects.items() if "/key/" in name)
        header, content = open_document(b"SRKY", hkdf(root_key, "lineage keys"), sealed_keys)
        keys = cbor2.loads(content)
        self.lineage: str = header["lineage"]
        self.key, self.dedup = keys["lineage"], keys["dedup"]
        self.chunks: dict[tuple[int, int], bytes] = {}
        for name, data in objects.items():
            if "/pack/" in name or "/rewrite/" in name:
                self._read_object(name.rsplit("/", 1)[1], data)
        root = next(data for name, data in objects.items() if "/manifest/" in name)
        self.header, content = open_document(b"SRMF", hkdf(self.key, "manifest"), root)
        self.root = cbor2.loads(unframe(content))

    def _read_object(self, object_id: str, data: bytes) -> None:
        assert data[:8] == b"SRPK\0\1\0\0"
        wrapped, length, version, end = struct.unpack(">60sIH4s", data[-70:])
        assert (version, end) == (1, b"SRPE")
        about = b"index\0\1" + self.lineage.encode() + b"/" + object_id.encode()
        index_key = open_box(hkdf(self.key, "index"), wrapped, about)
        index = unframe(AESGCM(index_key).decrypt(bytes(12), data[-70 - length : -70], about))
        at, offset = 4, 8
        for _ in range(int.from_bytes(index[:4], "big")):
            pack, _born, _total, wrapped_key, count = struct.unpack_from(">QQI60sI", index, at)
            at += 84
            numbers, lengths = summed(planes(index[at:], 4, count)), planes(index[at + 4 * count :], 4, count)
            at += 8 * count
            where = b"\0\1" + self.lineage.encode() + pack.to_bytes(8, "big")
            cipher = AESGCM(open_box(hkdf(self.key, "pack"), wrapped_key, b"pack key" + where))
            for number, size in zip(numbers, lengths, strict=True):
                about_chunk = b"chunk" + where + number.to_bytes(4, "big")
                frame = cipher.decrypt(number.to_bytes(12, "big"), data[offset : offset + size], about_chunk)
                self.chunks[pack, number] = unframe(frame)
                offset += size
        assert at == len(index)
        assert offset == len(data) - 70 - length

    def _leaves(self, depth: int, top: bytes) -> list[bytes]:
        plain = []
        for digest, pack, number, size in read_records(top):
            chunk = self.chunks[pack, number]
            assert len(chunk) == size
            assert blake3(chunk, key=self.dedup).digest(16) == digest
            plain += self._leaves(depth - 1, chunk) if depth else [chunk]
        return plain

    def entries(self) -> dict[str, bytes]:
        out = {}
        for page in self._leaves(self.root["depth"], self.root["entries"]):
            for name, size, digest, _facts, depth, top in cbor2.loads(page):
                out[name] = b"".join(self._leaves(depth, top))
                assert len(out[name]) == size
                assert blake3(out[name]).digest() == digest
        return out


def stored(vault: Vault) -> dict[str, bytes]:
    """All objects of the lineage, keys included."""
    objects = {stat.name: vault.store.get(stat.name) for stat in vault.store.list("")}
    objects[f"{LINEAGE}/key/{'0' * 32}"] = seal_lineage_keys(RootKey(ROOT), LINEAGE, vault.keys)
    return objects


@pytest.mark.parametrize("compression", [0, 1])
def test_another_program_can_read_a_store(tmp_path: Path, compression: int) -> None:
    """From the root key and the objects alone, by the documented layout: header, plan, entries, every byte."""
    vault = Vault(tmp_path, pack_target=100_000, compression=compression)
    vault.write(1, ENTRIES)
    second = SecondReader(stored(vault), ROOT)
    assert second.entries() == ENTRIES
    assert second.header == {
        "project": "p", "instance": "i", "lineage": LINEAGE, "seq": 1, "attempt": 1, "backup": "backup-1",
    }  # fmt: skip
    assert second.root["plan"] == [[LINEAGE, 1, ""]]
    assert second.root["totals"]["entries"] == 3
    assert dict(map(tuple, second.root["packs"])) == {
        pack: 1 + max(n for p, n in second.chunks if p == pack) for pack in vault.places
    }


def open_secret(sealed: bytes, *place: str) -> bytes:
    """A secret of a row, as the catalog seals it."""
    extracted = hmac.new(bytes(32), ROOT, hashlib.sha256).digest()
    key = hmac.new(extracted, b"strongroom secrets at rest 1\1", hashlib.sha256).digest()
    about = b"\1" + b"".join(len(word).to_bytes(4, "big") + word.encode() for word in place)
    assert sealed[:1] == b"\1"
    return AESGCM(key).decrypt(sealed[1:13], sealed[13:], about)


def read_lines(packed: bytes) -> list[Any]:
    """[table, row] of each line."""
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    return [json.loads(line) for line in plain.splitlines()]


def test_another_program_can_read_a_snapshot_and_a_segment_that_it_names() -> None:
    """The snapshot by the root key, the segment by the key that a row of the snapshot holds."""
    secret, sealer = bytes(range(100, 132)), Sealer(ROOT)
    snapshot, segment = LineWriter(), LineWriter()
    sealed = base64.b64encode(sealer.seal(secret, "trail", LINEAGE)).decode()
    snapshot.add("snapshot", {"at": 1.5}, counts=False)
    snapshot.add("trail", {"id": LINEAGE, "account": "a", "first": 1, "last": 1, "secret": sealed})
    segment.add("audit", {"account": "a", "sequence": 1, "user_name": "Łukasz"})
    data = seal_catalog(RootKey(ROOT), 2, 5, snapshot.finish())
    header, content = open_document(b"SRCT", hkdf(ROOT, "catalog"), data)
    assert (header["owner"], header["number"], header["root"]) == (2, 5, RootKey(ROOT).id)
    about, (table, row) = read_lines(content)
    assert about == ["snapshot", {"at": 1.5}]
    assert table == "trail"
    key = open_secret(base64.b64decode(row["secret"]), "trail", row["id"])
    header, content = open_document(b"SRTR", hkdf(key, "trail"), seal_trail(secret, LINEAGE, segment.finish()))
    assert header == {"trail": LINEAGE}
    assert read_lines(content) == [["audit", {"account": "a", "sequence": 1, "user_name": "Łukasz"}]]


LOG = LogHeader(LINEAGE, "i", 3, "a" * 32, 0, True, ("history", 4, 1.0), ("history", 9, 2.5))


def test_pieces_of_log_are_what_the_page_says(tmp_path: Path) -> None:
    """Where they belong stands in clear; marks and the log's own bytes open by the lineage's key."""
    vault = Vault(tmp_path)
    sealed = seal_log(vault.keys, Encoder(1), LOG, [(("history", 7, 2.0), 2000), (("history", 9, 2.5), 5000)], b"SET x" * 1000)
    _, opened = open_document(b"SRKY", hkdf(ROOT, "lineage keys"), seal_lineage_keys(RootKey(ROOT), LINEAGE, vault.keys))
    header, content = open_document(b"SRLG", hkdf(cbor2.loads(opened)["lineage"], "log"), sealed)
    assert header == {
        "lineage": LINEAGE, "instance": "i", "chain": 3, "group": "a" * 32, "piece": 0, "last": True,
        "begin": ["history", 4, 1.0], "end": ["history", 9, 2.5],
    }  # fmt: skip
    found = cbor2.loads(unframe(content))
    assert found == {"marks": [["history", 7, 2.0, 2000], ["history", 9, 2.5, 5000]], "log": b"SET x" * 1000}


PINNED = {
    "catalog": "cea2a3b4933e1d3e63c2b8f333800062",
    "closed": "0c0c69525a186928091a725582360834",
    "grave": "73095c4e8df4ac85df92ea77bd6afd73",
    "keys": "cddedcd1d765acc741267a2b2c8e6112",
    "log": "4b7c4b9ce31d79def8a8bea1845a645b",
    "manifest": "dd5f4d6dc62322fe80a7f6a353f2fecd",
    "owner": "fae3bc63f78068ef43133c7ed398e563",
    "packs": "cda3fc81b587870f467526bec4684968",
    "trail": "17be7caa57901c8765dc0a8be685ee9b",
}


def test_format_1_is_what_it_was(tmp_path: Path) -> None:
    """With fixed randomness and no compression (whose bytes are the library's) every object has the same bytes as ever."""
    vault = Vault(tmp_path, pack_target=100_000, compression=0)
    part = vault.write(1, ENTRIES)
    packs = [vault.store.get(stat.name) for stat in vault.store.list(f"{LINEAGE}/pack/")]
    root = RootKey(ROOT)
    objects = {
        "catalog": seal_catalog(root, 1, 2, b"lines"),
        "closed": seal_closed(root, LINEAGE),
        "grave": seal_grave(vault.keys, GraveFacts("p", "i", LINEAGE, 1, 1, "backup-1")),
        "keys": seal_lineage_keys(root, LINEAGE, vault.keys),
        "log": seal_log(vault.keys, Encoder(0), LOG, [(("history", 9, 2.5), 4)], b"SET x"),
        "manifest": vault.store.get(part.root),
        "owner": seal_owner(root, 1),
        "packs": b"".join(packs),
        "trail": seal_trail(bytes(32), LINEAGE, b"lines"),
    }
    assert {kind: hashlib.sha256(data).hexdigest()[:32] for kind, data in objects.items()} == PINNED


LONG_AGO = (
    "qj*X&F)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YOaA9L>FEK7LFE}}2Fg7$cVP-"
    "jFHa0LfVL3E8WMVQfFgGz{H8(XlG+7IEQ&Lb%009613w}R*0iJnIjK?%OBH~*m<BQH@@&eTQdthjqnzJ><P}QS!1%Iwc-wo*9F}`jY<$Tr1ACjN8sec4Gg"
    "vf*xD{BNd%+KjSquev8rB0Tz>zvkcHB~o00L-"
    "0juP@sn#ii!f*y*EX&a%(mQk$%H@5SWx*B5ZhXHvmt&OpTS4V42`JDAD0ws^f#5k23lZkLSZk6~T2&HlA2C4F<Q*XtioOJ>~8CA8KL_hwu?;UPPSaguX4m"
    "1QFN3!L^$;954S2b@ZG!XmjU4OC+$#BWW*wVFX4jw4IB9*Rl!IT_cc?0(zU=;EL(>g)&zJbCxC{)@fg09|(SY=T2_*K&mY5p6&B6qmY-"
    "e<!T37jJ?8zO#lFJxr8hFVO-{9iCaFq^g~$#iBME=~S-1pX5&^=gUBkJcB^i0@mdUjwN;4p%%mD<;Ti@ZnRKk(CAGb-"
    "i>#)yY4El4CDUTHz?DdOZdSrHNBhH@m!h-Yz98MS~V)O1B$<k(Ym<h&x?#eB<ymm+~sz469~tFH8a}d&aROv)hZO?A`PD~Y-$&+-"
    "wC7ovPHPVf<}&1QrSDiMs!sf1eJOcDU}x1n6?rNF)*6sIBpsMXjC`ehB7W<EcQoru|GC(<aD<u^aqj7UkReqR0+;9DNdb#sx~5n4Uw^nGdaX~9qy!MH@1`"
    "nXJx9m74!cW&jXn=?yQEK>Wc-EU;4}j0GS#VzXeB@xdG2~E92`jcANFYpY1E@r0)AXk>k%J)_O5PUuiE&9A|!A$o#%ElCO^oT<SG=Ol+t;UnMkwgw3A?4x"
    ">Qouchw*YAC%%7rT+ld4gWo^9qd{_Urt=(t7i1q%;X<9bxvK6dyzegzbI@<aw|Cv(b-pwu=M--0xiNwcbjsjCIdiGg_!^oruUm{9Q;)-"
    "vrZ<#OW;Ynp&+JtgR0{ASj+lWpVT6nUrvk@W}ajq+}kd<RVYpu|)`+)Rxck7>A2Z@%OKvF3$BBOXMsr#bKy#EX{Dwlj@V~x=<d(zH}kEUS&0Sqnk*YZK6!"
    "S6i>Bygc_7U&glxMj5pQN)po8un|%8Y3|OuyQR#v6h|YTwWc(>|2~_*pQ#o$s=`$hL5AlSGX>OJaJ7vAfX60@c&7F-"
    "FV`h2c5XaX3No|R%4uK|<2kTY9Erz`fi776cBj!74-"
    "%w5_H$`<x5hq1)WT{$sTQN9m<&r5w+i%0+*TG%+8LRH$(5)ft)m%IelV8{W3;GB0?I4L9_}9wd;U)U3cRc+_upoX9J0js<P)ky*OxuN+dob??SRJTJl>Kb"
    "Cb;}^ar40hwV<fby#!K(pRG$R8Y+W%>MUipEjvY0PUyL9wV+Gfx>T}mdABbYs!C*<GW?6m_&X){QE*N63+ZBm6N40j#UW5Y*Hf6l_m|DKc#uc9ZST?ZBH}"
    "oL-F<wM#>4>53QS&DfM-aHqjL~FjsMgsOinktZ)cV$kCuH_f)sH2m@H`;KmQG7`ay{l|sL)pC+4fy`8SnE6Xv*`=&Y<)Ltl0dy%`jsH5JZV!8Wi5ZRY4v#"
    "yiw&z+lfxsANUZGhozM))_^xGDR`*J1CSrAahgHq+f1SxG;Kl|H0w*o=H;_PL(4QuaVqyLL~CN!#gF!CL8YW0`a@$ME;2gR_6V~%w1~}ewRk(E77&!K@(U"
    "~(8sKYO)w^*Li0|+`{m<1Qu$v60BMqp;$rot`#i4Absz5`n0O4mw8!Z(o<LB%28Yt<SSu!}0#;A5Mx9-"
    "ZV6lG$lvq1G2#UlmAfV?36;q6bSv{&o!a2wZr<VE_vIFKG?s<p*UX_V<t^@?I{4&!2vze!ApZ9b9d?8Hcke41Z43e1$*{dE6tW!Nu7i0QGZY;<ASBC{xka"
    "bqR8Yafq#`XbNuV~cGUS<qOuQ@@(*9iNk&^eDp?(E)_`8#NLH()0`b`9yBWu;ix4ac5_Fqcc8Y?sFuImFd@q42h(cF$<q#o0;WB!e_i%vg8RWX>N{xv{&s"
    "EIA(hlTSk#1I!B<ffdtepEtLei0V2UVJB5hTCVUiN)y3#oI)Ko9;hpPTO%+8|-"
    "v+W70|WrL_m5KSbeX3EJ8|2+GXg5=v&PYPyIVEkx$R3cNzEQkvjdJsz?49vEzp#QW8LFe{`p3KTASP$zg(4kf<?gq04fcIWD5TiGH*1%r50nO4?1zIl@Kl"
    "bJNyOMHD#@czmXziScussM@)|UR9DV|4zzn)?&Ama&Ev8C#fIl&cd_`ovHdjs8N-"
    "uws^nqAe&POCYlNTAi3*e#5}kWqyGfNFo{{&)Zf4h*S&8DZ(HA0UNuF52Fgzw2)q+<XY6oa_=A@E!MKP%f7Q&Npiz7Q%SzT_AeX}xfg)8L??Ter-"
    ">+8nC@)+p>Y~-M*VClo-"
    "0PCo!sb>Ai+ibN&O9?RdL*)9F&}QI0h7bNdf%oRJ4z`6mInl8`UBBT~f<?ej!~K6?k(_TZdtRVSCR@NWR3cjHD>>PH($pL)ol><WWp&NiB}O`5dH#PxPZV"
    "6S-MPqOm6oEn5V90XB-S<|!AiU&WHC>zQ~tXzB8`$y+@dmH1O(lAAI(iWG)xu)8+s7);~i5cN5GBw-"
    "H4N5X}a~H3KEL)21?%u+^_PuIHb>i7wl%OJ=vvXm^JG;>^vJcioYV?ouF6z*ge>#u(Go^cGpYV$LC0_SsZOlfx+hq2u8iYFBkmdbZoBOk0~9hmRM0fCZ;U"
    "lWv`%a$f%7;V4|<-"
    "pQmHzkgx|TH(hE229sUcVLDbz<nh==o?zjIwqDu#{!^n4AhZtVSFX5Y!59CQ7mi+$=rDcnv=f%A$$k|3riszh|MtCs5s#ZCX4)nN%>EdCcOa}6B}%!f{(*"
    "MpcLvAR$1xagGE+RW$6Tl-J=SkCupt-qnVF_b0?gX{uKmVc{!3xGnU(5M7>GmFenuVr)(sK*IR&b48B6FxyohM&Y6*#?5T<6e0|jP(3Ri<+y8q6YD*B~>c"
    "%NwHAHjttGYl#Hj&w(Y$Jbv|(3M@K%8;X}{8hY*E)YEPsEkPHwOxl~CYVXEs}QSu-"
    "03UUD23_LmsPzK1+BuRT061*7*?^|e6kR+4mi(?$ZM{E(l%8@7ZMzI%eoN*O8eE__q<wB8^2Q#uo#{A;z8vD_)H%ubUfYJSbGDZMavSYp7*qatk_NP?LZM"
    "m^7G<F>q~Tz;T~4<=233#?hbvmKOC`Ig2GE*QvQy!l?IRxM~~uMGvr%zNOmfxl?g|4;4hMb0FnoJiM@5S_%;1*dHByhPWJ#u(h@L7CApFoh9)r3&2)*4#4"
    "}l<DJ-VwZsg(Rd-C}tpsV?s_XHX(CJhF0btM=j787q(S`h9Ix&c{H5eUZ|>)Cz-"
    "P!P=5t_$o^wQR(bDh}1?WBj*w;~LOs3t15(+vbR22?8vymdcs+SzaD0-"
    "HYJk{B}w^Jh3}=ef#y$LDOXetV_7wS*L<IlkL>RGcOEeOYBB<BWP1_223brkxmoi|5Mwb*zyuShi^STKZ~5}HFHASk3h+c{}ZQm6@}Dqa-"
    "1_giy#v+n5zW{b^hKtX|GsY<%@Sx9kZWaIvl^@ciW>?Uld7zu5K)+rLc2U{|}t9(Gta%HeDH|J1CMS*tPb>Xc5w9d)z~x*xHYkIkzR}p#YiWnt(hHvS>?q"
    "5J^liT&@1SpUH4D0!tc$#0K)sgZ%FoZZasU?oR?+vgViRJ8d!H4&#wK=L{Qf8EI4e;VgHQEo%T_SBo07)ySf*bgQ?1>KIQ6%3v{GlPUg2wddpsETee}5bk"
    "I=jpByQBXn1Cu_n%a-U6CKx;PKD)%~IhUx$nU004>r0aH>?MR-avF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YOaA9L>FEK7LFJd!hHDhEkW??sEI"
    "W%Q5VKQbgV>U2hV=y;2VKg#jHCX~OQ&Lb%00961ys{H82P3zYo!qylF!K{5Gp~G6q_a+=Vb|caGJgf)adCD{&<JFLkwGb#5EoowUc+7;6N4bNn_;w5<A~M"
    "OJD1_Y>slbx9j1Ds9!!7Kj-roa0j=0uHiApfe`2Z9U{vvH>4o@Q3zvojUgfR(s2Nuco~tA4=C)C3@p%qhQ<w$;1AyBhYn6))>x}L+3pr%0b)OCRl(1_|7H"
    "htNd+WuXyXq^~DDpux6z2wBQqOX|$5y+cd!zg$KHrR#irJOx788ZZ8g>&YaC~bfGQ$K$zM{#`x+&>F7Uv;U$jc(QDz}C)>2PkGDj=w#<e{k%NH#ussVstq"
    "W$#zkh#meESKoUu|2rF#K&T34TDQGI>ac48B}$|X{$$&sVPSD(uF*IsD3}j`bw~&it_8ARN0RCDYs&*fSS}tEMTXi2QtgekC6aP*_`SGKs}=rrlg?9=QOR"
    "tRZ$J~zzOF&ZRg*TTCrkqV&oU==C_}0hsRtiFlJ!^LLd?i%Wj;Bi05?N#bee%=Wp^4(bX=1(8aGd&-"
    "Z9QW?czufUv8*&<fPp6yS>>ckh)>+J2@Tfp8rGO1r_=R{^^IPwebx7_@rFHfaFgzGK0Z}ZQE&47E+aiRx$Ng9Jb;XfA*_fTP`JcR|+6`XZ~%HiXCQ85n)E"
    "RUh-"
    "w*F7{71Xhas6KF9?j$tjkgzSnKOLVuiV9+n)M*`eW}A7aJC0001W00C1{P(^r7F)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQFKuCNX=Y_}bT2V3F"
    ")uVVIXN+7FgId0V=`l6GGt{rIW#e5HD)$3VK!nmG&WfQRZ~(;MgRc-"
    "003U5V{>J30cK)hV{3JAXkuYwYjtofF=t_PbY*RDbOC2<X>Mg<XJvRGF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQF)=YQXK-"
    "?FYGq?|VQ^?^ZgX^DZewL(Y2_qx`P-"
    "r$x6WVMeGVdg!=AE}Wv;PsTvn8~Ty#8F3jD(=(#2B})Gj!V{K28Wln=#N3q=>AGt>OyStp%w$Gh0)c&e9xv$HSLOr>}Enmovl>b3d!87`0dwexJbzznq*4"
    "cg~krfj@Gesz8tTqHvgymtbvzi>OqtKH%c;J2oreZh^kxohjW<*ums-"
    "zQ8PTq0o0XpC{Z`qJb&)ZT)23=r#;iv|oQSm^8!I3&%*>a6Ut3?*&?b=M6X<$2A>F8Agy*rlP?gP1mF-~`0ra$mHpsxnx}QxVedFiB);Zy~21F=j<@(5V"
)
"""Objects by name, in CBOR, in Base85: a part as the first version wrote it."""


def test_a_store_that_was_written_long_ago_can_be_read(tmp_path: Path) -> None:
    """Compressed objects of format 1 as they were written when it began: no change of code or library may lose them."""
    vault = Vault(tmp_path)
    for name, data in cbor2.loads(base64.b85decode(LONG_AGO)).items():
        vault.store.put_new(name, data)
        parsed = names.parse(name)
        assert parsed is not None
        assert parsed.id is not None
        if parsed.kind == "pack":
            for pack in read_index(vault.store, vault.keys, LINEAGE, parsed.id, name).packs:
                vault.places[pack] = [(parsed.id, name)]
    root = next(stat.name for stat in vault.store.list(f"{LINEAGE}/manifest/"))
    assert vault.read(root) == {"rows": rows(400), "noise": noise(700), "empty": b""}
