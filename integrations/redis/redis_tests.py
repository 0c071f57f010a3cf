"""Servers and connections for the tests of Redis on Lightswap, and what runs these. Python's standard library only."""
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
REPLY_SECONDS = 30
START_SECONDS = 30


class ReplyError(Exception):
    """An error that a server answered with. Those with the same text are equal."""

    def __eq__(self, other):
        return isinstance(other, ReplyError) and self.args == other.args

    def __hash__(self):
        return hash(self.args)


class Client:
    """A connection; one reply to each command, in order."""

    def __init__(self, server):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(REPLY_SECONDS)
        self.socket.connect(str(server.socket_path))
        self.stream = self.socket.makefile("rb")

    def send(self, *commands):
        self.socket.sendall(b"".join(encode(command) for command in commands))

    def receive(self):
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.receive_bytes(int(rest))
        assert kind == b"*", line
        return None if rest == b"-1" else [self.receive() for _ in range(int(rest))]

    def receive_bytes(self, num_bytes):
        data = self.stream.read(num_bytes + 2)
        if len(data) < num_bytes + 2:
            raise ConnectionError("the server closed the connection within a reply")
        return data[:-2]

    def call(self, *command):
        """One command; an error is raised."""
        self.send(command)
        reply = self.receive()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def all(self, commands, batch=500):
        """Many commands, pipelined."""
        replies = []
        for start in range(0, len(commands), batch):
            self.send(*commands[start:start + batch])
            replies += [self.receive() for _ in commands[start:start + batch]]
        return replies

    def id(self):
        return self.call("CLIENT", "ID")

    def close(self):
        self.stream.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def encode(command):
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"".join([b"*%d\r\n" % len(parts)] + [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts])


class Server:
    """A redis-server of its own, on a UNIX socket (and a port, if asked for). memory=None: the patched one without the directives. `config` is a
    configuration file, `directory` one that an earlier server has left."""

    def __init__(self, scratch, name="server", backend="memory:?size=128MiB", memory="6mb", port=0, stock=False, options=(), directory=None, config=None):
        self.directory = directory or pathlib.Path(tempfile.mkdtemp(prefix=name + ".", dir=scratch))
        self.socket_path = self.directory / "s"
        self.socket_path.unlink(missing_ok=True)
        self.port = port
        binary = os.environ["REDIS_STOCK" if stock else "REDIS_SERVER"]
        command = [binary, *([config] if config else []), "--port", str(port), "--unixsocket", str(self.socket_path), "--save", "", "--dir", str(self.directory),
                   "--enable-debug-command", "yes", "--crash-memcheck-enabled", "no", "--repl-diskless-sync-delay", "0", *options]
        if not stock and memory is not None:
            command += ["--lightswap-memory", memory, "--lightswap-backend", backend]
        self.log = self.directory / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until("the server has started", self.is_up, START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def is_up(self):
        status = self.process.poll()
        if status is not None:
            raise AssertionError(f"the server has ended with status {status}:\n" + self.log_text())
        try:
            self.admin = Client(self)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        # Answered with an error while the data is loaded.
        self.admin.send(("PING",))
        if self.admin.receive() == b"PONG":
            return True
        self.admin.close()
        return False

    def log_text(self):
        """The end of its log; of a crash report the beginning, too."""
        text = self.log.read_text(errors="replace")
        crash = text.find("=== REDIS BUG REPORT START")
        return text[-3000:] if crash < 0 else text[max(crash - 500, 0):crash + 4000]

    def client(self):
        return Client(self)

    def text(self, field):
        for line in self.admin.call("INFO", "everything").split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.decode() == field:
                return value.decode()
        raise KeyError(field)

    def info(self, field):
        return int(self.text(field))

    def digest(self):
        return self.admin.call("DEBUG", "DIGEST")

    def kill(self):
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        status = self.process.poll()
        if status is None:
            self.kill()
        elif status not in (0, -signal.SIGKILL) and kind is None:
            raise AssertionError(f"the server has ended with status {status}:\n" + self.log_text())
        if kind is not None:
            sys.stderr.write(self.log_text())


def wait_until(what, condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain until {what}")
        time.sleep(0.002)


def expect(what, got, wanted):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r:.300}, expected {wanted!r:.300}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_offset(master, replica):
    wait_until("the replica has caught up", lambda: replica.info("slave_repl_offset") == master.info("master_repl_offset"), 30)


def build():
    """Both servers, but those that the environment names."""
    for variable, arguments in (("REDIS_SERVER", ()), ("REDIS_STOCK", ("--stock",))):
        if variable not in os.environ:
            subprocess.run([HERE / "build", *arguments], check=True)
            os.environ[variable] = str(TOP / "build" / ("redis-stock" if arguments else "redis-lightswap") / "src" / "redis-server")


def random_seed():
    return int(os.environ.get("LIGHTSWAP_SEED", time.time_ns() % 1_000_000))


def run(program, tests, seed):
    """Runs them all, one after the other, whatever fails. The exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    build()
    print(f"LIGHTSWAP_SEED={seed}", flush=True)
    failed = []
    for name, test in tests.items():
        print(f"{name}: {test.__doc__}", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"lightswap-{program}.") as scratch:
            try:
                test(scratch, random.Random(f"{seed} {name}"))
                print(f"  ok, {time.monotonic() - start:.1f} s", flush=True)
            except Exception as error:  # the next test may tell more
                failed.append(name)
                frames = traceback.extract_tb(error.__traceback__)[1:]
                lines = [f"{pathlib.Path(frame.filename).name}:{frame.lineno}" for frame in frames]
                print(f"  FAILED: {type(error).__name__}: {error} ({', '.join(lines)})", flush=True)
    print(f"{len(tests) - len(failed)} passed, {len(failed)} failed" + "".join(f" {name}" for name in failed))
    return 1 if failed else 0


def main(program, tests):
    """The arguments are names of tests."""
    names = sys.argv[1:]
    if names == ["--list"]:
        print("\n".join(tests))
        return 0
    unknown = [name for name in names if name not in tests]
    if unknown:
        sys.stderr.write(f"{program}: there is no test {unknown[0]}; --list shows them\n")
        return 2
    return run(program, {name: tests[name] for name in names or tests}, random_seed())
