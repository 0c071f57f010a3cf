//! Real NBD servers in processes of their own: nbdkit and qemu-nbd.

use super::stream::Place;
use super::{short_path, unix_place};
use crate::common::{PAGE, skip};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Whether a program is there to be tested with; says so if not. With LIGHTSWAP_REQUIRE_NBD=1 nbdkit has to be.
pub fn is_installed(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]).any(|directory| directory.join(program).is_file())
    });
    let is_required = program == "nbdkit" && std::env::var("LIGHTSWAP_REQUIRE_NBD").is_ok_and(|value| value == "1");
    assert!(found || !is_required, "{program} is not installed, and LIGHTSWAP_REQUIRE_NBD=1 demands it");
    found || skip(&format!("{program} is not installed"))
}

/// A server that can be started again at its place. Killed when it is dropped. The thread that starts it must outlive it: the kernel ends it with that one.
pub struct Server {
    /// The program and its arguments.
    command: Vec<String>,
    place: Place,
    export: String,
    child: Option<Child>,
    /// Removed in the end.
    file: Option<PathBuf>,
}

impl Server {
    fn start(command: Vec<String>, place: Place, export: &str, file: Option<PathBuf>) -> Self {
        let mut server = Self { command, place, export: export.into(), child: None, file };
        server.restart();
        server
    }

    /// The URL of its export, with options as in `timeout=1&lost-after=3`.
    pub fn url(&self, options: &str) -> String {
        self.place.url(&self.export, options)
    }

    /// The same with TLS.
    pub fn secure_url(&self, options: &str) -> String {
        self.place.secure_url(&self.export, options)
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("it runs").id().cast_signed()
    }

    /// SIGKILL: nothing is said to clients, and what it had in memory is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it at the same place again, and waits until it answers.
    pub fn restart(&mut self) {
        self.kill();
        if let Place::Unix(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
        self.child = Some(spawn(&self.command));
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.place.connect().is_err() {
            let ended = self.child.as_mut().expect("just started").try_wait().unwrap();
            assert!(ended.is_none(), "{:?} ended at once: {ended:?}", self.command);
            assert!(Instant::now() < deadline, "{:?} does not answer", self.command);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGSTOP: connections stay open, and nobody reads them.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
        // Threads that run stop when they next come by the kernel.
        crate::common::wait_until("all threads of the server stand still", || self.stands_still());
    }

    fn stands_still(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state stands behind the name, which is in parentheses.
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the process is our child and not waited for yet, so that the number is still its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let socket = if let Place::Unix(path) = &self.place { Some(path.clone()) } else { None };
        for path in socket.into_iter().chain(self.file.take()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs a command that ends with the thread that calls this, if not before.
pub fn spawn(command: &[String]) -> Child {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        process.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    process.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// nbdkit with its memory plugin, whose content a restart forgets.
#[derive(Clone, Debug)]
pub struct Nbdkit {
    place: Place,
    filters: Vec<&'static str>,
    /// Behind the plugin's name.
    parameters: Vec<String>,
    /// In front of it.
    options: Vec<String>,
    /// Programs in front of nbdkit itself.
    wrapper: Vec<String>,
}

impl Nbdkit {
    /// Memory for so many pages, and one more for a client's mark, at a UNIX socket; `None`, with a message, where nbdkit is not installed.
    pub fn memory(num_pages: usize) -> Option<Self> {
        is_installed("nbdkit").then(|| Self {
            place: unix_place(),
            filters: Vec::new(),
            parameters: vec![((num_pages + 1) * PAGE).to_string()],
            options: Vec::new(),
            wrapper: Vec::new(),
        })
    }

    /// At a TCP port of the loopback interface instead.
    pub fn tcp(self) -> Self {
        self.at(Place::Tcp(([127, 0, 0, 1], free_port()).into()))
    }

    pub fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Run by another program, as `ip netns exec NAME` is one.
    pub fn run_by(self, wrapper: Vec<String>) -> Self {
        Self { wrapper, ..self }
    }

    /// Adds a filter with its parameters. The last one added is nearest to the memory.
    pub fn filter<'a>(mut self, name: &'static str, parameters: impl IntoIterator<Item = &'a str>) -> Self {
        self.filters.push(name);
        self.parameters.extend(parameters.into_iter().map(String::from));
        self
    }

    pub fn read_only(self) -> Self {
        self.option("--readonly")
    }

    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    pub fn start(self) -> Server {
        let mut command = self.wrapper;
        command.extend(["nbdkit", "--foreground", "--log=null"].map(String::from));
        match &self.place {
            Place::Unix(path) => command.extend(["--unix".into(), path.display().to_string()]),
            Place::Tcp(address) => {
                command.extend([format!("--ipaddr={}", address.ip()), format!("--port={}", address.port())]);
            }
        }
        if self.filters.is_empty() {
            // A thread for each connection: with several, nbdkit 1.32 may abort when a connection breaks under one that answers. Delays need several.
            command.push("--threads=1".into());
        }
        command.extend(self.options);
        command.extend(self.filters.iter().map(|filter| format!("--filter={filter}")));
        command.push("memory".into());
        command.extend(self.parameters);
        Server::start(command, self.place, "swap", None)
    }
}

/// qemu-nbd with a raw file for so many pages, and one more, as the export "swap" at a UNIX socket; `None`, with a message, where it is not installed.
pub fn qemu_nbd(num_pages: usize, options: &[&str]) -> Option<Server> {
    if !is_installed("qemu-nbd") {
        return None;
    }
    let file = short_path("qemu");
    std::fs::File::create(&file).unwrap().set_len(((num_pages + 1) * PAGE) as u64).unwrap();
    let place = unix_place();
    let Place::Unix(socket) = &place else { unreachable!("as asked for") };
    let path = |path: &Path| path.display().to_string();
    // As many clients as like, one after the other or at once, until it is killed.
    let mut command = ["qemu-nbd", "--persistent", "--shared=0", "--format=raw", "--export-name=swap", "--discard=unmap"].map(String::from).to_vec();
    command.extend(options.iter().map(|option| option.to_string()));
    command.extend([format!("--socket={}", path(socket)), path(&file)]);
    Some(Server::start(command, place, "swap", Some(file)))
}

/// A port of the loopback interface that was free just now.
pub fn free_port() -> u16 {
    static LAST: OnceLock<std::sync::Mutex<Vec<u16>>> = OnceLock::new();
    let mut given = LAST.get_or_init(Default::default).lock().unwrap();
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        // The system may name a port again, once it is free.
        if !given.contains(&port) {
            given.push(port);
            return port;
        }
    }
}
