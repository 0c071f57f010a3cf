//! redis-benchmark, which comes with Redis, as a second opinion: GETs of keys that are all as likely.
//!
//! It makes a number of requests and not for a time, so a first run tells how many. It checks no values, and counts nothing but answers.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::endpoint::Endpoint;
use crate::generator::Shape;
use crate::interrupt;
use crate::outside::{GRACE, execute};
use crate::protocol::Parsed;
use crate::protocol::resp::{Frame, append_array, append_bulk, append_bulk_length, parse};
use crate::results::{Details, EXTERNAL, Run};
use crate::server_kind::{Programs, on_path};
use crate::stall::PatientSocket;
use crate::tally::LatencyUs;
use crate::values::append_value;

pub const NAME: &str = "redis-benchmark";
/// As results name what it does.
pub const WORKLOAD: &str = "redis-benchmark-get";
/// Records that are under way while they are loaded.
const BATCH: u64 = 64;
/// By which the rate is estimated.
const TRIAL_REQUESTS: u64 = 20_000;

/// Beside one of the servers, as it is built with them, or on PATH.
pub fn find(programs: &Programs) -> Option<PathBuf> {
    let beside = [&programs.redis_stock, &programs.redis_lightswap].into_iter().flatten().map(|program| on_path(program).with_file_name(NAME));
    beside.chain([on_path(Path::new(NAME))]).find(|path| path.is_file())
}

/// Sets every key that it asks for.
pub fn load(endpoint: &Endpoint, shape: &Shape) -> Result<()> {
    let failure = || format!("cannot load the records of {NAME} at {endpoint}");
    let mut socket = PatientSocket::connect(endpoint)?;
    let (mut request, mut input) = (Vec::new(), Vec::new());
    for first in (0..shape.records).step_by(BATCH as usize) {
        interrupt::check()?;
        request.clear();
        let keys = first..(first + BATCH).min(shape.records);
        for key in keys.clone() {
            append_array(3, &mut request);
            append_bulk(b"SET", &mut request);
            append_bulk(format!("key:{key:012}").as_bytes(), &mut request);
            let size = shape.value_sizes.of(key);
            append_bulk_length(size, &mut request);
            append_value(shape.value_kind, key, 1, size, &mut request);
            request.extend_from_slice(b"\r\n");
        }
        socket.write_all(&request).with_context(failure)?;
        for _ in keys {
            read_ok(&mut socket, &mut input).with_context(failure)?;
        }
    }
    Ok(())
}

fn read_ok(socket: &mut PatientSocket, input: &mut Vec<u8>) -> Result<()> {
    let mut piece = [0; 4096];
    loop {
        match parse(input) {
            Parsed::Complete(Frame::Status(_), length) => {
                input.drain(..length);
                return Ok(());
            }
            Parsed::Complete(Frame::Error(text), _) => bail!("the server refuses a record: {}", String::from_utf8_lossy(text)),
            Parsed::Complete(..) | Parsed::Garbled => bail!("the server's answer to a SET is none"),
            Parsed::Incomplete => match socket.read(&mut piece)? {
                0 => bail!("the server closed the connection"),
                count => input.extend_from_slice(&piece[..count]),
            },
        }
    }
}

fn arguments(endpoint: &Endpoint, shape: &Shape, requests: u64) -> Vec<String> {
    let mut arguments = match endpoint {
        Endpoint::Tcp(address) => vec!["-h".into(), address.ip().to_string(), "-p".into(), address.port().to_string()],
        Endpoint::Unix(path) => vec!["-s".into(), path.to_string_lossy().into_owned()],
    };
    let number = |option: &str, number: u64| [option.to_owned(), number.to_string()];
    arguments.extend(number("-c", shape.connections as u64));
    arguments.extend(number("-n", requests));
    arguments.extend(number("-r", shape.records));
    arguments.extend(number("-d", shape.value_sizes.mean() as u64));
    if shape.client_threads > 1 {
        arguments.extend(number("--threads", shape.client_threads as u64));
    }
    arguments.extend(["-t".into(), "get".into()]);
    arguments
}

/// Runs it against a running server. The caller adds what it knows of the server.
pub fn run(program: &Path, endpoint: &Endpoint, shape: &Shape, duration: Duration) -> Result<Run> {
    let (_, trial) = execute(program, endpoint, &arguments(endpoint, shape, TRIAL_REQUESTS), duration + GRACE)?;
    let rate = parse_output(&trial)?.operations_per_second;
    let requests = (rate * duration.as_secs_f64()).max(1_000.0) as u64;
    let (cpu_seconds, text) = execute(program, endpoint, &arguments(endpoint, shape, requests), duration * 4 + GRACE)?;
    let mut run = parse_output(&text)?;
    run.workload = WORKLOAD.into();
    run.server = shape.protocol.server().into();
    run.connections = shape.connections;
    run.details = Details {
        transport: if matches!(endpoint, Endpoint::Tcp(_)) { "tcp" } else { "unix" }.into(),
        records: shape.records,
        value_size_bytes: shape.value_sizes.mean(),
        value_mix: shape.value_sizes.mix(),
        distribution: "uniform".into(),
        duration_seconds: requests as f64 / run.operations_per_second,
        operations: requests,
        generator: NAME.into(),
        generator_cpu_seconds: cpu_seconds,
        ..Details::default()
    };
    Ok(run)
}

/// What it prints. Percentiles between those that it lists are those of the next above.
fn parse_output(text: &str) -> Result<Run> {
    // Lines of progress end with a carriage return.
    let lines = || text.split(['\n', '\r']).map(str::trim);
    let missing = |what: &str| format!("{NAME} says nothing of {what}");
    let rate = lines().find_map(|line| line.strip_prefix("throughput summary:")?.split_whitespace().next()?.parse::<f64>().ok());
    let operations_per_second = rate.filter(|rate| *rate > 0.0).with_context(|| missing("its throughput"))?;
    let listed: Vec<(f64, f64)> = lines()
        .filter_map(|line| {
            let (percent, rest) = line.split_once("% <= ")?;
            let (ms, rest) = rest.split_once(' ')?;
            // The other list, by latencies, has other steps.
            Some((percent.parse().ok()?, ms.parse::<f64>().ok()?)).filter(|_| rest.starts_with("milliseconds"))
        })
        .take_while({
            let mut last = -1.0;
            move |(percent, _): &(f64, f64)| std::mem::replace(&mut last, *percent) <= *percent
        })
        .collect();
    let at = |percent: f64| -> Result<f64> {
        let found = listed.iter().find(|(listed, _)| *listed >= percent).with_context(|| missing("its latencies"))?;
        Ok(found.1 * 1_000.0)
    };
    let latency_us = LatencyUs { p50: at(50.0)?, p90: at(90.0)?, p99: at(99.0)?, p999: at(99.9)?, max: at(100.0)? };
    Ok(Run {
        configuration: EXTERNAL.into(),
        backend: "unknown".into(),
        local_memory_ratio: 1.0,
        repetition: 1,
        operations_per_second,
        latency_us,
        hit_ratio: 1.0,
        ..Run::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::wishes;

    const OUTPUT: &str = "GET: rps=0.0 (overall: nan)\r====== GET ======\n  20000 requests completed in 0.25 seconds\n\n\
        Latency by percentile distribution:\n0.000% <= 0.103 milliseconds (cumulative count 1)\n50.000% <= 0.303 milliseconds (cumulative count 10)\n\
        75.000% <= 0.351 milliseconds (cumulative count 12)\n93.750% <= 0.415 milliseconds (cumulative count 15)\n\
        99.219% <= 0.703 milliseconds (cumulative count 17)\n100.000% <= 1.207 milliseconds (cumulative count 20)\n\
        100.000% <= 1.207 milliseconds (cumulative count 20)\n\nCumulative distribution of latencies:\n0.000% <= 0.103 milliseconds (cumulative count 1)\n\
        99.900% <= 9.999 milliseconds (cumulative count 20)\n\nSummary:\n  throughput summary: 80321.29 requests per second\n";

    #[test]
    fn its_output_is_read() {
        let run = parse_output(OUTPUT).unwrap();
        assert_eq!(run.operations_per_second, 80_321.29);
        assert_eq!(run.latency_us, LatencyUs { p50: 303.0, p90: 415.0, p99: 703.0, p999: 1_207.0, max: 1_207.0 });
        assert!(parse_output("").unwrap_err().to_string().contains("nothing of its throughput"));
        assert!(parse_output("throughput summary: 1.0 requests").unwrap_err().to_string().contains("latencies"));
    }

    #[test]
    fn it_asks_for_the_keys_that_were_loaded() {
        let words = arguments(&Endpoint::Unix("/tmp/x".into()), &wishes().shape, 7).join(" ");
        assert_eq!(words, "-s /tmp/x -c 64 -n 7 -r 500000 -d 1000 -t get");
    }
}
