//! A plan on stand-ins for memcached, one of which dies in the middle of a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::ServerArguments;
use crate::commands::is_clean;
use crate::generator::Shape;
use crate::grid::execute;
use crate::journal::Journal;
use crate::lab::Transport;
use crate::plan::{Plan, Times, Wishes};
use crate::protocol::{DataType, Protocol};
use crate::results::Results;
use crate::server_kind::ServerKind;
use crate::value_sizes::ValueSizes;
use crate::values::ValueKind;
use crate::ycsb::Workload;

fn configuration(directory: &Path, name: &str, argument: &str) -> String {
    let path = directory.join(format!("{name}.toml"));
    let text = format!(
        "about = \"a stand-in\"\nbinary = \"stock\"\nmemory = \"unlimited\"\nbackend = \"none\"\n\
         arguments = [\"-t\", \"{{server_threads}}\", {argument:?}]\n[settings]\nserver_threads = 1\n"
    );
    fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn plan(configurations: Vec<String>, repetitions: u32) -> Plan {
    let shape = Shape {
        records: 200,
        value_sizes: ValueSizes::fixed(100),
        value_kind: ValueKind::Random,
        connections: 4,
        client_threads: 1,
        protocol: Protocol::Memcached,
    };
    let wishes = Wishes {
        quick: true,
        configurations,
        workloads: vec![Workload::C],
        ratios: vec![1.0],
        repetitions: Some(repetitions),
        server_kind: ServerKind::Memcached,
        shape,
        data_type: DataType::Strings,
    };
    let mut plan = Plan::demo(&wishes).unwrap();
    let short = Duration::from_millis(200);
    plan.times = Times { warm_up: Duration::ZERO, warm_up_max: Duration::ZERO, duration: short, probe_seconds: 1, ..plan.times };
    plan
}

fn arguments(directory: &Path) -> ServerArguments {
    ServerArguments {
        memcached_stock: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-memcached")),
        memcached_lightswap: None,
        redis_stock: "redis-server".into(),
        redis_lightswap: None,
        directory: directory.join("scratch"),
        transport: Transport::Tcp,
        server_argument: Vec::new(),
        lightswap_argument: Vec::new(),
    }
}

#[test]
fn two_versions_of_a_server_take_turns() {
    let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-versions", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let configurations: Vec<String> = ["before", "now"]
        .map(|version| {
            let program = directory.join(format!("memcached-{version}"));
            std::os::unix::fs::symlink(arguments(&directory).memcached_stock, program).unwrap();
            let path = configuration(&directory, version, "-v");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, format!("server = \"memcached-{version}\"\n{text}")).unwrap();
            path
        })
        .to_vec();
    let journal = Journal::open_in(&directory.join("state")).unwrap();
    let out = directory.join("out.json");
    let results = execute(&journal, &mut plan(configurations.clone(), 3), &arguments(&directory), &out, false).unwrap();
    assert!(is_clean(&results.runs), "{:?}", results.runs[0].problems());
    let order: Vec<&str> = results.runs.iter().map(|run| run.configuration.as_str()).collect();
    assert_eq!(order, ["before", "now", "now", "before", "before", "now"]);
    for run in &results.runs {
        let program = format!("memcached-{} ", run.configuration);
        assert!(run.details.server_command.starts_with(&program), "{}", run.details.server_command);
    }

    // One that is no server is named before anything is measured.
    let program = directory.join("memcached-before");
    fs::remove_file(&program).unwrap();
    fs::write(&program, "no program").unwrap();
    let error = format!("{:#}", execute(&journal, &mut plan(configurations, 3), &arguments(&directory), &out, true).unwrap_err());
    assert!(error.contains("before: cannot run") && error.contains(&*program.to_string_lossy()), "{error}");
    drop(journal);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_server_that_hangs_is_killed_and_the_rest_goes_on() {
    let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-hang", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let configurations = vec![configuration(&directory, "hanging", "--hang-after=20"), configuration(&directory, "sound", "-v")];
    let journal = Journal::open_in(&directory.join("state")).unwrap();
    let results = execute(&journal, &mut plan(configurations, 1), &arguments(&directory), &directory.join("out.json"), false).unwrap();
    let of = |name: &str| results.runs.iter().find(|run| run.configuration == name).unwrap();
    let error = of("hanging").details.error.as_deref().unwrap();
    assert!(error.contains("hanging -t 1") && error.contains("did not answer"), "{error}");
    let (_, rest) = error.split_once("fake-memcached: process ").expect("the server's last line");
    let pid = rest.split(' ').next().unwrap();
    assert!(!Path::new("/proc").join(pid).exists(), "process {pid} is left");
    assert!(of("sound").problems().is_empty());
    drop(journal);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_server_that_dies_fails_its_cells_and_the_rest_goes_on() {
    let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-grid", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let dying = configuration(&directory, "dying", "--die-after=20");
    let sound = configuration(&directory, "sound", "-v");
    let arguments = arguments(&directory);
    let journal = Journal::open_in(&directory.join("state")).unwrap();
    let out = directory.join("out.json");
    let run = |configurations: Vec<String>, fresh| execute(&journal, &mut plan(configurations, 2), &arguments, &out, fresh).unwrap();

    let results = run(vec![dying.clone(), sound.clone()], false);
    let of = |results: &Results, name: &str| -> Vec<_> { results.runs.iter().filter(|run| run.configuration == name).cloned().collect::<Vec<_>>() };
    for run in of(&results, "dying") {
        // Tried twice.
        assert!(run.details.first_failure.is_some());
        let error = run.details.error.expect("a failed cell");
        assert!(error.contains("fake-memcached: out of luck") && error.contains("exit status: 3"), "{error}");
    }
    let sound_runs = of(&results, "sound");
    assert_eq!((of(&results, "dying").len(), sound_runs.len()), (2, 2));
    assert!(sound_runs.iter().all(|run| run.problems().is_empty() && run.details.operations > 0), "{sound_runs:?}");
    assert!(!is_clean(&results.runs));
    for run in &results.runs {
        assert!(!run.details.server_command.contains(env!("CARGO_MANIFEST_DIR")), "{}", run.details.server_command);
    }

    // Taken up again with the cause mended: what was finished stays, the failed cells are replaced.
    configuration(&directory, "dying", "-v");
    let results = run(vec![dying.clone(), sound.clone()], false);
    assert!(is_clean(&results.runs));
    assert_eq!(results.runs.len(), 4);
    let operations = |runs: &[crate::results::Run]| runs.iter().map(|run| run.details.operations).collect::<Vec<_>>();
    assert_eq!(operations(&of(&results, "sound")), operations(&sound_runs));
    assert_eq!(Results::read(&out).unwrap().runs.len(), 4);

    let again = run(vec![sound], true);
    assert_ne!(operations(&of(&again, "sound")), operations(&sound_runs));
    let left: Vec<String> =
        fs::read_dir(directory.join("scratch")).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(left.is_empty(), "{left:?}");
    drop(journal);
    fs::remove_dir_all(&directory).unwrap();
}
