"""A server most of whose values are swapped out: what the tests of parked clients and of lost values begin with."""
import time

from redis_tests import ReplyError, expect

VALUE_BYTES = 2000


def value_of(key):
    """What the key is set to; tells keys apart in every page."""
    return (f"<{key}>".encode() * (VALUE_BYTES // len(f"<{key}>") + 1))[:VALUE_BYTES]


def cold(i):
    """Neighbours share pages: what is to be missing must not be next to what was asked for."""
    return f"cold:{i}"


def far(i):
    return cold(i * 8)


def hot(i):
    return f"hot:{i}"


NUM_HOT = 50


def fill(server, num_cold=10000):
    """Many keys that are swapped out, and a few that are not."""
    replies = server.admin.all([("SET", cold(i), value_of(cold(i))) for i in range(num_cold)])
    expect("SETs", set(replies), {b"OK"})
    server.admin.all([("SET", hot(i), value_of(hot(i))) for i in range(NUM_HOT)])
    keep_hot(server)
    # The server looks at commands' keys as soon as it has seen that data leaves memory.
    time.sleep(0.05)


def push_out(server, commands):
    """Until none of these commands finds what it asks for in memory. For backends that fail all reads."""
    for turn in range(20):
        replies = server.admin.all(commands)
        if all(isinstance(reply, ReplyError) and str(reply).startswith("LSWERR") for reply in replies):
            return
        server.admin.all([("SET", f"filler:{i}", value_of(str(turn))) for i in range(5000)])
        keep_hot(server)
    raise AssertionError("what was to be swapped out stays in memory")


def keep_hot(server):
    for _ in range(3):
        replies = server.admin.all([("GET", hot(i)) for i in range(NUM_HOT)])
        expect("hot values", replies, [value_of(hot(i)) for i in range(NUM_HOT)])


def parked(server):
    return server.info("lightswap_parked_clients")


SLOW = "faulty(read%1=stall:150):memory:?size=128MiB"
