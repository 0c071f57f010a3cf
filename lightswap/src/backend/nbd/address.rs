//! stub
use std::time::Duration;
pub(super) const OPTIONS: [&str; 9] =
    ["size", "socket", "timeout", "lost-after", "tls-certificates", "tls-verify-peer", "tls-hostname", "connections", "poll"];
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) socket: String,
    pub(super) size_bytes: Option<u64>,
    pub(super) timeout: Duration,
    pub(super) lost_after: Duration,
    pub(super) max_connections: usize,
    pub(super) busy_poll_us: u64,
}
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.socket)
    }
}
impl Address {
    pub(super) fn parse<'a>(_: &str, path: &str, option: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let number = |name: &str, default: f64| option(name).map_or(default, |text| text.parse().unwrap());
        Ok(Self {
            socket: option("socket").unwrap_or(path.trim_matches('/')).into(),
            size_bytes: option("size").map(|text| crate::size::parse_size(text).unwrap()),
            timeout: Duration::from_secs_f64(number("timeout", 2.0)),
            lost_after: Duration::from_secs_f64(number("lost-after", 10.0)),
            max_connections: number("connections", 64.0) as usize,
            busy_poll_us: number("poll", 0.0) as u64,
        })
    }
}
