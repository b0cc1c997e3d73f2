"""Changes to files: of values where a file holds a structure, of lines and words where it is text, of bytes otherwise.

A set of files is a dict: relative name -> content. In place of a content may stand one of ``PLACES``.
"""

import io
import json
import pickletools
import re
import struct
import zipfile
import zlib

import yaml

PLACES = ("folder", "pipe", "loop")  # what may lie where a file is expected; a loop is a link to itself
DEEP = "@deep@"  # becomes brackets in brackets
WORDS = "1e999 nan -inf 1 1.0 0x10 1_000 ٣ ² é e\u0301 \ud800 \U0001f600 \x1b[31m =cmd() null true %s{0} ~ . .. "
WORDS += "../../../etc/passwd /dev/zero C:\\x\\y.png a/b/c http://x/y.png"
NASTY = (
    *(None, True, False, 0, -1, 1, 2, 7, 0.5, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
    *(2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, "", " ", "\0", "x" * 3000, "9" * 5000, "x" * 300, DEEP),
    *WORDS.split(),
    *([], {}, [[]], [None], [1], [1, 2, 3, 4, 5], {"": None}, {"a": {"b": []}}),
)
CALL = {"class_path": "subprocess.Popen", "init_args": {"args": "touch canary", "shell": True}}
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 14000, 200000)
CALLS = (b"cos\nsystem\n(Vtouch canary\ntR", b"\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R", b"\x82\xf0")
CLASSES = b"builtins.eval builtins.getattr collections.OrderedDict torch.FloatStorage torch._utils._rebuild_tensor_v2"
CLASSES += b" numpy.dtype numpy.core.multiarray.scalar argparse.Namespace"
PICKLED = (  # instructions, some of which make sense only where others have left something on the stack
    *(*CALLS, *(b"c%b\n%b\n" % tuple(name.rsplit(b".", 1)) for name in CLASSES.split()), b"h\x00", b"h\x01", b"q\x01"),
    *(bytes([code]) for code in b"()]}N\x88t\x85\x86\x87aesu021Rb\x81Q\x94\x8f\x90\x91."),
    *(b"r\xff\xff\xff\x7f", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"Pw\n", b"U\x01w"),
    *(b"G\x7f\xf0" + bytes(6), b"X" + bytes(4), b"\x8e" + b"\xff" * 7 + b"\x00", b"\x95" + b"\xff" * 8),
    *(b"\x8b\xff\xff\xff\x7f", b"I99999999999999999999\n"),
)


def mutate(rng, files):
    """A changed copy of some files."""
    files = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(files))
        if rng.random() < 0.06:
            _displace(rng, files, name)
        elif isinstance(files[name], bytes):
            files[name] = mutate_file(rng, name, files[name])
    return files


def mutate_file(rng, name, data):
    """Another content for a file; what kind it is its name tells."""
    kind = name.rpartition(".")[2]
    by_kind = {"json": mutate_json, "yaml": mutate_yaml, "xml": mutate_text, "txt": mutate_text, "csv": mutate_text}
    by_kind |= {"png": mutate_png, "safetensors": mutate_safetensors, "pkl": mutate_pickle}
    by_kind |= {"pth": mutate_zip, "pt2": mutate_zip}
    change = by_kind.get(kind, mutate_bytes)
    try:
        return (change if rng.random() < 0.85 else mutate_bytes)(rng, data)
    except Exception:  # changed once already, it is not of its kind any more
        return mutate_bytes(rng, data)


def _displace(rng, files, name):
    how = rng.choice(("delete", "rename", "suffix", "copy", *PLACES))
    if how in PLACES:
        files[name] = how
        return
    content = files[name] if how == "copy" else files.pop(name)
    folder, _, base = name.rpartition("/")
    new = {"rename": rng.choice(("é.png", "a b.txt", "-x", "CON", "ü" * 60)), "suffix": base + "x", "copy": "2" + base}
    if how in new:
        files[f"{folder}/{new[how]}".lstrip("/")] = content
    if not files:
        files["x"] = b""


def mutate_bytes(rng, data):
    data = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        head = rng.random() < 0.6  # where most formats say how large things are
        at = rng.randrange(min(len(data), 96) if head else len(data)) if data else 0
        end = at + rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(8):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1 | 2 | 3:
                size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                value = rng.choice(NUMBERS) % (1 << 8 * size)
                data[at : at + size] = value.to_bytes(size, order)
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end] * rng.choice((1, 1, 50))
            case 6:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
            case 7 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def mutate_tree(rng, root):
    """A copy of plain values with one of them changed."""
    holder = [json.loads(json.dumps(root))]
    places = []
    queue = [holder]
    while queue:
        node = queue.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                queue.append(node[key])
    node, key = rng.choice(places)
    other, its = rng.choice(places)
    value = node[key]
    match rng.randrange(8):
        case 0 | 1 | 2:
            node[key] = rng.choice((*NASTY, CALL))
        case 3:
            del node[key]
        case 4 if not isinstance(value, dict | list) and not isinstance(other[its], dict | list):
            node[key], other[its] = other[its], value
        case 5:
            node[key] = rng.choice(([value], {"x": value}, str(value)[:99]))
        case 6 if isinstance(node, dict):
            node[str(rng.choice(NASTY))[:200]] = node.pop(key)
        case 6 if isinstance(node, list):
            node.extend([value] * rng.choice((1, 1, 300)))
        case 7 if isinstance(value, int | float):
            node[key] = rng.choice((-value, value + 0.5, value * 1000, str(value), value * 10**9))
        case _:
            node[key] = rng.choice(NASTY)
    return holder[0] if holder else None


def _deepen(rng, text):
    depth = rng.choice((20, 900, 20000))
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).replace(DEEP, "[" * depth + "]" * depth)


def mutate_json(rng, data):
    if rng.random() < 0.2:
        return mutate_text(rng, data)
    text = _deepen(rng, json.dumps(mutate_tree(rng, json.loads(data))))
    if rng.random() < 0.1:  # a key twice
        key = rng.choice(re.findall(r'"\w+"', text) or ['"x"'])
        text = text.replace("{", f"{{{key}: {json.dumps(rng.choice(NASTY))}, ", 1)
    return text.encode()


def mutate_yaml(rng, data):
    if rng.random() < 0.35:
        return mutate_text(rng, data)
    tree = mutate_tree(rng, yaml.safe_load(data))
    text = json.dumps(tree) if rng.random() < 0.5 else yaml.safe_dump(tree, allow_unicode=True)
    return _deepen(rng, text).encode(errors="surrogatepass")


def mutate_text(rng, data):
    text = data.decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True) or [""]
    at = rng.randrange(len(lines))
    words = list(re.finditer(r"[^\s<>,;/:\"']+", text))
    match rng.randrange(12):
        case 0 | 1 | 2 | 3 | 4 if words:
            word = rng.choice(words)
            others = ("&a", "*a", "!!python/name:os.system", "<x>" * 2000, "&lt;", "<!ENTITY a 'b'>", "")
            new = rng.choice((*map(str, NASTY), *others))
            text = text[: word.start()] + new + text[word.end() :]
        case 5:
            text = "".join(lines[:at] + lines[at + 1 :])
        case 6:
            text = "".join(lines[:at] + lines[at : at + 1] * rng.choice((2, 2, 300)) + lines[at:])
        case 7:
            text = text[: rng.randrange(len(text) + 1)]
        case 8:
            return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037")), "replace")
        case 9:
            pairs = (("\n", "\r\n"), ("\n", "\r"), (",", ";"), (" ", "\t"), (",", "\t"), (".", ","))
            text = text.replace(*rng.choice(pairs))
        case 10:
            place = rng.randrange(len(text) + 1)
            piece = rng.choice(("\0", '"', "'", "\n", ",", "<", "[", "{", " " * 50000, "1" * 50000))
            text = text[:place] + piece + text[place:]
        case _:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
            text = "".join(lines)
    return text.encode("utf-8", "surrogateescape" if "\ud800" not in text else "surrogatepass")


def mutate_png(rng, data):
    """A chunk of a PNG file changed, dropped or repeated, with its checksum made to fit."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(chunks))
    name, content = chunks[place]
    match rng.randrange(6):
        case 0:
            chunks[place : place + 1] = [(name, content)] * rng.choice((0, 2, 50))
        case 1:
            bomb = zlib.compress(bytes(rng.choice((100, 20_000_000))))
            chunks.insert(place, (b"zTXt", b"a\0\0" + bomb))
        case 2:
            others = {b"tRNS": bytes(6), b"eXIf": b"II*\0\x08\0\0\0\xff\xff", b"acTL": bytes(8), b"PLTE": b"x"}
            chunks.insert(1, rng.choice(list(others.items())))
        case _:
            chunks[place] = name, mutate_bytes(rng, content)
    whole = [
        struct.pack(">I", len(body)) + key + body + struct.pack(">I", zlib.crc32(key + body)) for key, body in chunks
    ]
    return data[:8] + b"".join(whole)


def mutate_safetensors(rng, data):
    size = int.from_bytes(data[:8], "little")
    header = mutate_json(rng, data[8 : 8 + size])
    content = data[8 + size :] if rng.random() < 0.8 else mutate_bytes(rng, data[8 + size :])
    return len(header).to_bytes(8, "little") + header + content


def mutate_pickle(rng, data):
    """Instructions of a pickle inserted, dropped, repeated or exchanged."""
    starts = [place for _, _, place in pickletools.genops(data)]
    codes = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, other = rng.randrange(len(codes)), rng.randrange(len(codes))
        match rng.randrange(5):
            case 0 | 1:
                codes.insert(at, rng.choice(PICKLED))
            case 2 if len(codes) > 1:
                del codes[at]
            case 3:
                codes[at:at] = codes[at:other][:20] * rng.choice((1, 1, 60))
            case _:
                codes[at % len(codes)] = rng.choice((*PICKLED, codes[other % len(codes)]))
    return b"".join(codes)


def mutate_zip(rng, data):
    """A member of an archive changed, dropped, repeated, renamed or compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    likely = [place for place, (name, _) in enumerate(members) if name.endswith((".pkl", ".json"))]
    place = rng.choice(likely if rng.random() < 0.6 else range(len(members)))
    name, content = members[place]
    method = zipfile.ZIP_STORED
    match rng.randrange(8):
        case 0:
            members.pop(place)
        case 1:
            others = f"{name} {name}x ../x /x x/constants.pkl x/data.pkl x/data/aotinductor/x.so".split()
            members.append((rng.choice(others), content))
        case 2:
            method = zipfile.ZIP_DEFLATED
            members[place] = name, content + bytes(rng.choice((0, 20_000_000)))
        case _:
            members[place] = name, mutate_file(rng, name, content)
    with zipfile.ZipFile(changed := io.BytesIO(), "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return changed.getvalue()
