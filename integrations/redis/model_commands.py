"""Commands at random on keys of all types, whose replies and effects are the same on every server."""
import time

WORDS = [f"w{i}" for i in range(40)]
TEXT_BYTES = (8, 40, 90, 500, 1500, 4000)
FAR = 4_000_000_000_000     # ms: an expiry that no test lives to see
DOOMED_MS = 20
# After so long what has DOOMED_MS to live is gone on any machine.
DOOMED_SECONDS = 0.3
NUM_KEYS = {"s": 120, "n": 10, "p": 8, "b": 6, "l": 14, "h": 16, "H": 3, "t": 8, "T": 3, "z": 10, "Z": 3, "x": 6}
ALL = 1_000_000
EFFECT_OF_SCRIPT = "return redis.call(unpack(ARGV))"
# Whose replies are in the order of a hash table, which each process has a seed of its own for: of elements, and of pairs.
OF_ELEMENTS = {"HKEYS", "HVALS", "SMEMBERS", "SINTER", "SUNION", "SDIFF", "KEYS", "SRANDMEMBER", "ZRANDMEMBER", "SPOP"}
OF_PAIRS = {"HGETALL", "HRANDFIELD"}
SCANS = {"SSCAN": OF_ELEMENTS, "HSCAN": OF_PAIRS, "ZSCAN": OF_PAIRS}


def ordered(words, reply):
    """The part of the reply to the command that does not depend on the server, in an order that does not."""
    name = words[0]
    if name in ("EVAL", "FCALL"):
        return ordered(words[3 + int(words[2]):], reply)
    if not isinstance(reply, list):
        return reply
    if words[:2] == ("XINFO", "GROUPS"):
        # Upstream's append-only file does not say how many entries a group has read.
        return [group[:8] for group in reply]
    if name in SCANS:
        return [reply[0], sorted(reply[1]) if SCANS[name] is OF_ELEMENTS else pairs(reply[1])]
    if name in OF_ELEMENTS:
        return sorted(reply)
    return pairs(reply) if name in OF_PAIRS else reply


def pairs(elements):
    return sorted(zip(elements[::2], elements[1::2]))


class Step:
    """A command and the keys that it is about."""
    __slots__ = ("words", "keys")

    def __init__(self, words, keys=()):
        self.words, self.keys = words, keys


class Keyspace:
    """A client's own keys: no other client uses names with this prefix. It knows nothing of what they hold."""

    def __init__(self, rng, prefix):
        self.rng, self.prefix = rng, prefix
        self.used = []
        self.number = 0
        self.doomed = []    # [key, when it was answered]

    # ---- Parts of commands ----

    def key(self, kind):
        key = f"{self.prefix}{kind}{self.rng.randrange(NUM_KEYS[kind])}"
        self.used.append(key)
        return key

    def any_key(self):
        return self.key(self.rng.choice("sssspblhHtTzZx"))

    def next(self):
        self.number += 1
        return self.number

    def text(self, most_bytes=4000):
        """Unlike any other; half of it can be compressed."""
        num_bytes = self.rng.choice(TEXT_BYTES)
        part = self.rng.randbytes(24) if self.rng.random() < 0.5 else b"%x." % self.rng.getrandbits(64)
        return (b"<%d>" % self.next() + part * (num_bytes // len(part) + 1))[:min(num_bytes, most_bytes)]

    def word(self):
        return self.rng.choice(WORDS)

    def member(self):
        return self.rng.choice([self.word(), str(self.rng.randrange(1000)), f"member {self.rng.randrange(100)} " * 4])

    def index(self):
        return self.rng.randrange(-60, 60)

    def end(self):
        return self.rng.choice(["LEFT", "RIGHT"])

    def score(self):
        return self.rng.randrange(1000)

    def some_id(self):
        return f"{self.rng.randrange(self.number + 1)}-1"

    def several(self, make, most):
        return [make() for _ in range(self.rng.randrange(1, most))]

    def fields(self, most):
        return [part for _ in range(self.rng.randrange(1, most)) for part in (self.word(), self.text())]

    def scored(self, most):
        return [part for _ in range(self.rng.randrange(1, most)) for part in (self.score(), self.member())]

    # ---- Commands ----

    STRINGS = [
        lambda k: ("SET", k.key("s"), k.text()), lambda k: ("SET", k.key("s"), k.text()), lambda k: ("SET", k.key("s"), k.text(), "GET"),
        lambda k: ("SET", k.key("s"), k.text(), "KEEPTTL"), lambda k: ("SET", k.key("s"), k.text(), "PXAT", FAR), lambda k: ("SET", k.key("s"), k.text(), "NX"),
        lambda k: ("GET", k.key("s")), lambda k: ("GET", k.key("s")), lambda k: ("GET", k.key("s")), lambda k: ("APPEND", k.key("s"), k.text()),
        lambda k: ("GETRANGE", k.key("s"), k.index(), k.rng.randrange(-300, 3000)), lambda k: ("SETRANGE", k.key("s"), k.rng.randrange(6000), k.text(500)),
        lambda k: ("STRLEN", k.key("s")), lambda k: ("GETDEL", k.key("s")), lambda k: ("GETSET", k.key("s"), k.text()),
        lambda k: ("GETEX", k.key("s"), *k.rng.choice([("PERSIST",), ("PXAT", FAR), ()])), lambda k: ("MGET", *k.several(lambda: k.key("s"), 6)),
        lambda k: ("MSET", k.key("s"), k.text(), k.key("s"), k.text()), lambda k: ("MSETNX", k.key("s"), k.text(), k.key("s"), k.text()),
        lambda k: ("SETNX", k.key("s"), k.text()), lambda k: ("INCRBY", k.key("n"), k.index()), lambda k: ("INCRBYFLOAT", k.key("n"), "0.5"),
        lambda k: ("DECR", k.key("n")), lambda k: ("SET", k.key("n"), k.score()), lambda k: ("GET", k.key("n")), lambda k: ("INCR", k.key("s")),
        lambda k: ("SETBIT", k.key("b"), k.rng.randrange(40000), k.rng.randrange(2)), lambda k: ("GETBIT", k.key("b"), k.rng.randrange(40000)),
        lambda k: ("BITCOUNT", k.key("b")), lambda k: ("BITCOUNT", k.key("s"), k.index(), k.rng.randrange(3000)), lambda k: ("BITPOS", k.key("b"), 1),
        lambda k: ("BITOP", k.rng.choice(["AND", "OR", "XOR"]), k.key("b"), k.key("b"), k.key("s")), lambda k: ("BITOP", "NOT", k.key("b"), k.key("b")),
        lambda k: ("BITFIELD", k.key("b"), "INCRBY", "u16", k.rng.randrange(20000), 7, "GET", "u8", k.rng.randrange(20000)),
        lambda k: ("PFADD", k.key("p"), *k.several(k.text, 12)), lambda k: ("PFCOUNT", k.key("p"), k.key("p")), lambda k: ("PFCOUNT", k.key("p")),
        lambda k: ("PFMERGE", k.key("p"), k.key("p"), k.key("p")),
    ]
    LISTS = [
        lambda k: ("LPUSH", k.key("l"), *k.several(k.text, 4)), lambda k: ("RPUSH", k.key("l"), *k.several(k.text, 4)), lambda k: ("RPUSHX", k.key("l"), k.word()),
        lambda k: ("LPOP", k.key("l")), lambda k: ("RPOP", k.key("l"), k.rng.randrange(1, 4)), lambda k: ("LRANGE", k.key("l"), k.index(), k.index()),
        lambda k: ("LRANGE", k.key("l"), 0, -1), lambda k: ("LINDEX", k.key("l"), k.index()), lambda k: ("LSET", k.key("l"), k.index(), k.text()),
        lambda k: ("LINSERT", k.key("l"), "BEFORE", k.word(), k.text()), lambda k: ("LREM", k.key("l"), k.index() % 3, k.word()),
        lambda k: ("LTRIM", k.key("l"), 0, 60), lambda k: ("LMOVE", k.key("l"), k.key("l"), k.end(), k.end()), lambda k: ("RPOPLPUSH", k.key("l"), k.key("l")),
        lambda k: ("LMPOP", 2, k.key("l"), k.key("l"), k.end(), "COUNT", 3), lambda k: ("LPOS", k.key("l"), k.word()), lambda k: ("LLEN", k.key("l")),
        lambda k: ("BLPOP", k.key("l"), k.key("l"), "0.01"), lambda k: ("BLMOVE", k.key("l"), k.key("l"), k.end(), k.end(), "0.01"),
        lambda k: ("SORT", k.key("l"), "ALPHA", "LIMIT", 0, 5), lambda k: ("SORT", k.key("l"), "ALPHA", "STORE", k.key("l")),
    ]
    HASHES = [
        lambda k: ("HSET", k.key("h"), *k.fields(4)), lambda k: ("HSET", k.key("H"), f"big{k.score()}", k.text(), k.word(), k.text()),
        lambda k: ("HGET", k.key("h"), k.word()), lambda k: ("HGET", k.key("H"), f"big{k.score()}"), lambda k: ("HMGET", k.key("h"), *k.several(k.word, 5)),
        lambda k: ("HMGET", k.key("H"), *k.several(lambda: f"big{k.score()}", 8)), lambda k: ("HGETALL", k.key("h")), lambda k: ("HGETALL", k.key("H")),
        lambda k: ("HVALS", k.key("h")), lambda k: ("HKEYS", k.key("H")), lambda k: ("HSTRLEN", k.key("h"), k.word()), lambda k: ("HDEL", k.key("h"), k.word()),
        lambda k: ("HDEL", k.key("H"), *k.several(lambda: f"big{k.score()}", 8)), lambda k: ("HEXISTS", k.key("h"), k.word()), lambda k: ("HLEN", k.key("h")),
        lambda k: ("HLEN", k.key("H")), lambda k: ("HINCRBY", k.key("h"), f"n{k.index()}", 7), lambda k: ("HINCRBYFLOAT", k.key("h"), f"f{k.index() % 9}", "1.5"),
        lambda k: ("HSETNX", k.key("h"), k.word(), k.text()), lambda k: ("HSCAN", k.key("H"), 0, "COUNT", ALL), lambda k: ("OBJECT", "ENCODING", k.key("h")),
        lambda k: ("HRANDFIELD", k.key("h"), ALL, "WITHVALUES"), lambda k: ("HSET", k.key("h"), k.word(), k.word()),
    ]
    SETS = [
        lambda k: ("SADD", k.key("t"), *k.several(k.score, 30)), lambda k: ("SADD", k.key("T"), *k.several(k.member, 30)), lambda k: ("SREM", k.key("t"), k.score()),
        lambda k: ("SREM", k.key("T"), k.member()), lambda k: ("SISMEMBER", k.key("t"), k.score()), lambda k: ("SMISMEMBER", k.key("t"), 1, 2, 3),
        lambda k: ("SCARD", k.key("t")), lambda k: ("SMEMBERS", k.key("t")), lambda k: ("SMEMBERS", k.key("T")), lambda k: ("SINTER", k.key("t"), k.key("T")),
        lambda k: ("SUNION", k.key("t"), k.key("t")), lambda k: ("SDIFF", k.key("t"), k.key("t")), lambda k: ("SINTERCARD", 2, k.key("t"), k.key("t")),
        lambda k: ("SUNIONSTORE", k.key("t"), k.key("t"), k.key("t")), lambda k: ("SINTERSTORE", k.key("t"), k.key("t"), k.key("t")),
        lambda k: ("SDIFFSTORE", k.key("T"), k.key("T"), k.key("t")), lambda k: ("SMOVE", k.key("t"), k.key("t"), k.score()), lambda k: ("SSCAN", k.key("t"), 0, "COUNT", ALL),
        lambda k: ("SRANDMEMBER", k.key("t"), ALL), lambda k: ("SPOP", k.key("t"), ALL), lambda k: ("OBJECT", "ENCODING", k.key("t")),
        lambda k: ("SORT", k.key("t"), "LIMIT", 0, 10),
    ]
    SORTED_SETS = [
        lambda k: ("ZADD", k.key("z"), *k.scored(8)), lambda k: ("ZADD", k.key("Z"), *k.scored(20)), lambda k: ("ZADD", k.key("z"), "GT", "CH", k.score(), k.word()),
        lambda k: ("ZINCRBY", k.key("z"), 3, k.word()), lambda k: ("ZSCORE", k.key("z"), k.word()), lambda k: ("ZRANGE", k.key("z"), 0, -1, "WITHSCORES"),
        lambda k: ("ZRANGE", k.key("Z"), 100, 500, "BYSCORE", "LIMIT", 1, 20), lambda k: ("ZREVRANGE", k.key("z"), 0, 10), lambda k: ("ZRANK", k.key("z"), k.word()),
        lambda k: ("ZREM", k.key("z"), k.word()), lambda k: ("ZCARD", k.key("z")), lambda k: ("ZUNIONSTORE", k.key("z"), 2, k.key("z"), k.key("z")),
        lambda k: ("ZINTERSTORE", k.key("z"), 2, k.key("z"), k.key("t")), lambda k: ("ZRANGESTORE", k.key("z"), k.key("Z"), 0, 40), lambda k: ("ZPOPMIN", k.key("z"), 2),
        lambda k: ("ZPOPMAX", k.key("z")), lambda k: ("ZMPOP", 2, k.key("z"), k.key("z"), "MIN"), lambda k: ("BZPOPMIN", k.key("z"), k.key("z"), "0.01"),
        lambda k: ("ZCOUNT", k.key("z"), 10, 500), lambda k: ("ZREMRANGEBYSCORE", k.key("z"), 1, 40), lambda k: ("ZSCAN", k.key("z"), 0, "COUNT", ALL),
        lambda k: ("ZRANDMEMBER", k.key("z"), ALL), lambda k: ("GEOADD", k.key("z"), k.index(), k.index(), k.word()),
        lambda k: ("GEOSEARCH", k.key("z"), "FROMLONLAT", 3, 3, "BYRADIUS", 2000, "km", "ASC"),
    ]
    STREAMS = [
        lambda k: ("XADD", k.key("x"), "MAXLEN", "~", 150, f"{k.next()}-1", k.word(), k.text()), lambda k: ("XADD", k.key("x"), f"{k.next()}-1", k.word(), k.text()),
        lambda k: ("XRANGE", k.key("x"), "-", "+", "COUNT", 20), lambda k: ("XRANGE", k.key("x"), k.some_id(), "+", "COUNT", 5),
        lambda k: ("XREVRANGE", k.key("x"), "+", "-", "COUNT", 5), lambda k: ("XLEN", k.key("x")), lambda k: ("XTRIM", k.key("x"), "MAXLEN", 80),
        lambda k: ("XREAD", "COUNT", 10, "STREAMS", k.key("x"), k.some_id()), lambda k: ("XDEL", k.key("x"), k.some_id(), k.some_id()),
        lambda k: ("XGROUP", "CREATE", k.key("x"), "g", 0, "MKSTREAM"), lambda k: ("XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "STREAMS", k.key("x"), ">"),
        lambda k: ("XACK", k.key("x"), "g", k.some_id()), lambda k: ("XPENDING", k.key("x"), "g"), lambda k: ("XAUTOCLAIM", k.key("x"), "g", "d", 0, 0, "COUNT", 3),
        lambda k: ("XINFO", "STREAM", k.key("x")), lambda k: ("XINFO", "GROUPS", k.key("x")), lambda k: ("XSETID", k.key("x"), f"{k.next()}-1"),
    ]
    ANY = [
        lambda k: ("DEL", k.any_key()), lambda k: ("UNLINK", k.any_key(), k.any_key()), lambda k: ("EXISTS", k.any_key()), lambda k: ("TYPE", k.any_key()),
        lambda k: ("PEXPIREAT", k.any_key(), FAR), lambda k: ("PEXPIREAT", k.any_key(), 1), lambda k: ("PERSIST", k.any_key()), lambda k: ("PEXPIRETIME", k.any_key()),
        lambda k: k.on_two("RENAME"), lambda k: k.on_two("RENAMENX"), lambda k: k.on_two("COPY"), lambda k: (*k.on_two("COPY"), "REPLACE"),
        lambda k: ("MOVE", k.any_key(), 2), lambda k: ("COPY", *[k.any_key()] * 2, "DB", 2, "REPLACE"), lambda k: ("TOUCH", k.any_key()),
        lambda k: ("DUMP", k.key(k.rng.choice("ssbpl"))), lambda k: ("SET", k.fresh_doomed(), k.text(), "PX", DOOMED_MS), lambda k: ("KEYS", k.prefix + "[hz]*"),
    ]
    KINDS = [(STRINGS, 10), (LISTS, 4), (HASHES, 5), (SETS, 3), (SORTED_SETS, 3), (STREAMS, 3), (ANY, 3)]

    def on_two(self, name):
        """Keys of one type, so that what is called a list remains one."""
        kind = self.rng.choice("sslhHtzx")
        return name, self.key(kind), self.key(kind)

    def fresh_doomed(self):
        key = f"{self.prefix}doomed{self.next()}"
        self.doomed.append([key, None])
        return key

    def step(self):
        self.used = []
        makers = self.rng.choices([kind for kind, _ in self.KINDS], [weight for _, weight in self.KINDS])[0]
        words = self.rng.choice(makers)(self)
        return Step(words, tuple(dict.fromkeys(self.used)))

    def in_script(self, step):
        """Declared keys are waited for together, others are read when they are met."""
        keys = step.keys if self.rng.random() < 0.8 else ()
        if self.rng.random() < 0.3:
            return Step(("FCALL", "effect", len(keys), *keys, *step.words), step.keys)
        return Step(("EVAL", EFFECT_OF_SCRIPT, len(keys), *keys, *step.words), step.keys)

    def transaction(self, most):
        steps = [self.step() for _ in range(self.rng.randrange(1, most))]
        unit = [Step(("MULTI",)), *steps, Step(("EXEC",))]
        if self.rng.random() < 0.3:
            key = self.key("s")
            unit.insert(0, Step(("WATCH", key)))
            if self.rng.random() < 0.3:
                unit.insert(1, Step(("APPEND", key, self.word()), (key,)))
        return unit

    def batch(self, num_units):
        """Units: lists of steps, of which a server may refuse all or none."""
        now = time.monotonic()
        gone = [key for key, when in self.doomed if when is not None and now > when + DOOMED_SECONDS]
        self.doomed = [[key, when or now] for key, when in self.doomed if key not in gone]
        units = [[Step(("EXISTS", key))] for key in gone]
        for _ in range(num_units):
            kind = self.rng.random()
            if kind < 0.03:
                units.append(self.transaction(12))
            elif kind < 0.08:
                units.append([self.in_script(self.step())])
            else:
                units.append([self.step()])
        return units

    def filling(self):
        """Commands that make about 1.3 MiB of data."""
        steps = []
        for kind, num_keys in NUM_KEYS.items():
            for i in range(num_keys):
                key = f"{self.prefix}{kind}{i}"
                steps += [Step(words, (key,)) for words in self.filling_of(kind, key)]
        return steps

    def filling_of(self, kind, key):
        text = self.rng.randbytes(3000)
        if kind in "sb":
            return [("SET", key, text + self.rng.randbytes(self.rng.randrange(3000)))]
        if kind == "l":
            return [("RPUSH", key, *[text[i:i + 1000] + self.text() for i in range(20)])]
        if kind == "h":
            return [("HSET", key, *[part for i in range(0, 40, 3) for part in (WORDS[i], text[i:i + 600])])]
        if kind == "H":
            return [("HSET", key, *[part for i in range(0, 400, 4) for part in (f"big{i}", text[i:i + 500 + i])])]
        if kind in "tT":
            return [("SADD", key, *range(300))] + ([("SADD", key, *[f"member {i} " * 4 for i in range(100)])] if kind == "T" else [])
        if kind in "zZ":
            return [("ZADD", key, *[part for i in range(100 if kind == "z" else 400) for part in (i, f"member {i}")])]
        if kind == "x":
            return [("XADD", key, f"{self.next()}-1", "field", text[:700]) for _ in range(40)]
        return [("PFADD", key, *range(500))] if kind == "p" else [("SET", key, 5)]
