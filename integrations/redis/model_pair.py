"""A patched server, a stock one that is told the same, and what tells whether they differ."""
import random
import time

from model_commands import Keyspace, Step, ordered
from redis_tests import ReplyError, expect

NUM_CLIENTS = 24
UNITS_IN_BATCH = 30
NUM_DBS = 3
FUNCTIONS = "#!lua name=model\nredis.register_function('effect', function(keys, args) return redis.call(unpack(args)) end)"


class Actor:
    """A client of both servers, with keys of its own."""

    def __init__(self, rng, number):
        self.keys = Keyspace(rng, f"c{number}:")
        self.db = number % 2
        self.real = self.model = None

    def connect(self, server, stock):
        self.close()
        self.real, self.model = server.client(), stock.client()
        for client in (self.real, self.model):
            client.call("SELECT", self.db)

    def close(self):
        for client in (self.real, self.model):
            if client is not None:
                client.close()


def words_of(unit):
    return [step.words for step in unit]


def receive_all(client, units):
    return [[client.receive() for _ in unit] for unit in units]


def compare_one(step, got, wanted):
    if got != wanted and ordered(step.words, got) != ordered(step.words, wanted):
        raise AssertionError(f"{step.words!r:.400}: got {got!r:.400}, stock {wanted!r:.400}")


def compare(unit, got, wanted, may_be_lost=False):
    """may_be_lost: a command in a transaction that only reads may find out late that it cannot."""
    for step, one_got, one_wanted in zip(unit, got, wanted):
        if step.words[0] != "EXEC" or not isinstance(one_got, list) or not isinstance(one_wanted, list):
            compare_one(step, one_got, one_wanted)
            continue
        queued = unit[[step.words[0] for step in unit].index("MULTI") + 1:-1]
        expect("replies of EXEC", len(one_got), len(one_wanted))
        for inner, inner_got, inner_wanted in zip(queued, one_got, one_wanted):
            if not (may_be_lost and is_refused(inner_got)):
                compare_one(inner, inner_got, inner_wanted)


def is_refused(reply):
    """Nothing was done: a value cannot be read back, or there is no room."""
    return isinstance(reply, ReplyError) and (str(reply).startswith(("LSWERR", "OOM")) or str(reply).startswith("EXECABORT") and
                                              ("LSWERR" in str(reply) or "previous errors" in str(reply) or "OOM" in str(reply)))


def is_known_before(unit):
    """What a transaction reads is looked for before it begins, so what it moves elsewhere first is not."""
    keys = [key for step in unit if step.words[0] != "WATCH" for key in step.keys]
    return len(keys) == len(set(keys))


def done_of(unit, got):
    """The part of a unit that was done, and the replies: a transaction is refused as a whole, what is before it alone."""
    if is_refused(got[-1]):
        num_before = words_of(unit).index(("MULTI",)) if len(unit) > 1 else 0
        unit, got = [*unit[:num_before], Step(("UNWATCH",))], [*got[:num_before], b"OK"]
    done = [(step, reply) for step, reply in zip(unit, got) if not is_refused(reply)]
    return [step for step, _ in done], [reply for _, reply in done]


class Pair:
    """A patched server, a stock one that models it, and their clients."""

    def __init__(self, rng, server, stock):
        self.rng, self.server, self.stock = rng, server, stock
        self.actors = [Actor(random.Random(rng.random()), i) for i in range(NUM_CLIENTS)]
        self.num_commands = self.num_refused = self.num_gone = 0
        self.connect()
        for node in (server, stock):
            node.admin.call("FUNCTION", "LOAD", "REPLACE", FUNCTIONS)

    def connect(self):
        for actor in self.actors:
            actor.connect(self.server, self.stock)

    def fill(self, run=None):
        for actor in self.actors:
            steps = actor.keys.filling()
            for start in range(0, len(steps), 100):
                (run or self.run_refusable)([(actor, [[step] for step in steps[start:start + 100]])])
        # The server looks at commands' keys as soon as it has seen that data leaves memory.
        time.sleep(0.05)

    def batches(self):
        """A turn: what some of the clients send at the same time."""
        actors = self.rng.sample(self.actors, self.rng.randrange(NUM_CLIENTS // 2, NUM_CLIENTS + 1))
        return [(actor, actor.keys.batch(UNITS_IN_BATCH)) for actor in actors]

    def turn(self):
        batches = self.batches()
        for actor, units in batches:
            for client in (actor.real, actor.model):
                client.send(*[words for unit in units for words in words_of(unit)])
        for actor, units in batches:
            for unit, got, wanted in zip(units, receive_all(actor.real, units), receive_all(actor.model, units)):
                compare(unit, got, wanted)
                self.num_commands += len(unit)

    def run_refusable(self, batches):
        """The model is told only what the server has not refused."""
        for actor, units in batches:
            actor.real.send(*[words for unit in units for words in words_of(unit)])
        for actor, units in batches:
            done = [done_of(unit, got) for unit, got in zip(units, receive_all(actor.real, units))]
            self.num_refused += sum(unit[-1].words == ("UNWATCH",) for unit, _ in done)
            actor.model.send(*[words for unit, _ in done for words in words_of(unit)])
            for unit, got in done:
                compare(unit, got, [actor.model.receive() for _ in unit], may_be_lost=True)
                self.num_commands += len(unit)

    def refusable_turn(self):
        self.run_refusable([(actor, [unit for unit in units if is_known_before(unit)]) for actor, units in self.batches()])

    def run_vanishing(self, batches):
        """Of a server that may drop any key: a command is sent with the question which of its keys are there, and the model drops what is not."""
        asked = []
        for actor, units in batches:
            asked.append((actor, [[Step(("MULTI",)), *[Step(("EXISTS", key)) for key in step.keys], step, Step(("EXEC",))] for step, in units]))
            actor.real.send(*[words for unit in asked[-1][1] for words in words_of(unit)])
        for actor, units in asked:
            for unit, got in zip(units, receive_all(actor.real, units)):
                if is_refused(got[-1]):
                    self.num_refused += 1
                    continue
                if not isinstance(got[-1], list):
                    raise AssertionError(f"{words_of(unit)!r:.300}: {got[-1]!r}")
                gone = [step.words[1] for step, reply in zip(unit[1:-2], got[-1]) if reply == 0]
                actor.model.send(*[("DEL", key) for key in gone], *words_of(unit))
                self.num_gone += sum(actor.model.receive() for _ in gone)
                compare(unit, got, [actor.model.receive() for _ in unit], may_be_lost=True)
                self.num_commands += len(unit)

    def vanishing_turn(self, may_be_used):
        self.run_vanishing([(actor, [unit for unit in units if len(unit) == 1 and unit[0].keys and may_be_used(unit[0])]) for actor, units in self.batches()])

    def settle(self):
        """What has little time to live is gone on all servers."""
        keys = [key for actor in self.actors for key, _ in actor.keys.doomed]
        time.sleep(0.05)
        for server in (self.server, self.stock):
            for db in range(NUM_DBS):
                server.admin.all([("SELECT", db)] + [("EXISTS", key) for key in keys] + [("SELECT", 0)])

    def check(self, what):
        self.settle()
        expect(f"digest {what}", self.server.digest(), self.stock.digest())

    def compare_values(self, may_be_gone=False):
        """Without DEBUG DIGEST: all keys, one by one. The number of those that cannot be read back, and of those that are not there."""
        self.settle()
        num_lost = num_gone = 0
        for db in range(NUM_DBS):
            for server in (self.server, self.stock):
                server.admin.call("SELECT", db)
            here, there = (set(server.admin.call("KEYS", "*")) for server in (self.server, self.stock))
            assert here <= there, f"keys that ought not to be there: {sorted(here - there)[:5]}"
            assert may_be_gone or here == there, f"keys that are missing: {sorted(there - here)[:5]}"
            num_gone += len(there - here)
            for key in sorted(here):
                step = reader(self.stock.admin, key)
                got, wanted = (server.admin.all([step.words, ("PEXPIRETIME", key)]) for server in (self.server, self.stock))
                if is_refused(got[0]):
                    num_lost += 1
                elif may_be_gone and got[1] == -2:
                    num_gone += 1
                else:
                    compare_one(step, got[0], wanted[0])
                    expect(f"expiry of {key}", got[1], wanted[1])
        return num_lost, num_gone

    def report(self):
        counters = ", ".join(f"{self.server.info('lightswap_' + name)} {name.replace('_', ' ')}" for name in ("parks", "restarts", "synchronous_runs"))
        swapped, used = (self.server.info(f"lightswap_{name}_bytes") / 2**20 for name in ("swapped", "used"))
        print(f"  {self.num_commands} commands, {counters}; {swapped:.0f} of {used:.0f} MiB swapped out")
        assert self.server.info("lightswap_swap_ins") > 1000, "hardly anything was swapped out"


def reader(client, key):
    kind = client.call("TYPE", key)
    return Step({b"string": ("GET", key), b"list": ("LRANGE", key, 0, -1), b"hash": ("HGETALL", key), b"set": ("SMEMBERS", key),
                 b"zset": ("ZRANGE", key, 0, -1, "WITHSCORES"), b"stream": ("XRANGE", key, "-", "+")}[kind])
