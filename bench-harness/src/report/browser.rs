//! The report in a real browser: Chromium without a window, driven over a pipe (`--remote-debugging-pipe`), so that no port is open and no client library
//! is needed. Phone widths take the protocol: a window is never narrower than 500 pixels.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::synthetic;
use crate::results::Results;

const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const WIDTHS: [(&str, u32, u32); 3] = [("phone", 390, 844), ("small-phone", 360, 740), ("desktop", 1280, 900)];

fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|directory| PROGRAMS.map(|name| directory.join(name))).find(|program| program.is_file())
}

/// A browser and the two pipes it is spoken to by. Dropping it ends the browser with all its processes.
struct Browser {
    child: Child,
    requests: File,
    answers: BufReader<File>,
    profile: PathBuf,
    next_id: u64,
    session: Option<String>,
    /// Whatever the page complained about.
    complaints: Vec<String>,
    loaded: bool,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // SAFETY: kill() takes no pointers. The browser leads a process group of its own (see `start`), and it is not yet waited for, so the id is its own.
        unsafe { libc::kill(-self.child.id().cast_signed(), libc::SIGKILL) };
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

impl Browser {
    fn start(program: &Path) -> Self {
        let profile = std::env::temp_dir().join(format!("lightswap-bench-browser-{}", std::process::id()));
        let _ = fs::remove_dir_all(&profile);
        fs::create_dir_all(&profile).unwrap();
        let (their_requests, requests) = std::io::pipe().unwrap();
        let (answers, their_answers) = std::io::pipe().unwrap();
        let ends = [their_requests.as_raw_fd(), their_answers.as_raw_fd()];
        let mut command = Command::new(program);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let place = move || {
            // Copies first, above the two numbers that the browser expects: an end may already be one of these.
            for (end, wanted) in ends.into_iter().zip([10, 11]) {
                // SAFETY: between fork and exec, both calls are async-signal-safe and the descriptors are open.
                if unsafe { libc::dup2(end, wanted) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            for (from, wanted) in [(10, 3), (11, 4)] {
                // SAFETY: as above; what 3 and 4 were is of no use to the browser, and the copies must not stay open in it.
                if unsafe { libc::dup2(from, wanted) < 0 || libc::close(from) < 0 } {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: `place` only makes async-signal-safe calls.
        let child = unsafe { command.pre_exec(place) }.spawn().unwrap();
        let mut browser = Self {
            child,
            requests: OwnedFd::from(requests).into(),
            answers: BufReader::new(OwnedFd::from(answers).into()),
            profile,
            next_id: 1,
            session: None,
            complaints: Vec::new(),
            loaded: false,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    fn receive(&mut self) -> Value {
        let mut message = Vec::new();
        self.answers.read_until(0, &mut message).unwrap();
        assert!(!message.is_empty(), "the browser ended");
        message.pop();
        serde_json::from_slice(&message).unwrap()
    }

    fn note(&mut self, event: &Value) {
        match event["method"].as_str() {
            Some("Page.loadEventFired") => self.loaded = true,
            Some("Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" | "Network.loadingFailed") => {
                self.complaints.push(event.to_string());
            }
            // The page itself and what it holds within; anything else is a look outside.
            Some("Network.requestWillBeSent") => {
                let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
                if !url.starts_with("file:") && !url.starts_with("data:") {
                    self.complaints.push(format!("the page asks for {url}"));
                }
            }
            _ => {}
        }
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.requests.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.receive();
            if answer["id"] == json!(id) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn open(&mut self, page: &Path) {
        self.loaded = false;
        self.call("Page.navigate", &json!({"url": format!("file://{}", page.display())}));
        while !self.loaded {
            let event = self.receive();
            self.note(&event);
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.call("Runtime.evaluate", &json!({"expression": expression, "returnByValue": true}));
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    fn screenshot(&mut self, to: &Path) {
        let shot = self.call("Page.captureScreenshot", &json!({"format": "png", "captureBeyondViewport": true}));
        let picture = decode_base64(shot["data"].as_str().unwrap());
        assert!(picture.starts_with(b"\x89PNG"));
        fs::write(to, picture).unwrap();
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    let (mut bits, mut num_bits) = (0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | u32::from(digit(byte));
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
        }
    }
    bytes
}

/// What is wrong with the page as it is laid out now; empty when nothing is.
const FLAWS: &str = r#"(() => {
    const flaws = [], root = document.documentElement;
    if (root.scrollWidth > root.clientWidth) {
        const wide = [...document.body.querySelectorAll('*')].filter(e => !e.closest('.wide, svg') && e.getBoundingClientRect().right > root.clientWidth + 1);
        flaws.push(`${root.scrollWidth} wide in ${root.clientWidth}: ${wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120)).join(' | ')}`);
    }
    for (const chart of document.querySelectorAll('.area, .track')) {
        const size = chart.getBoundingClientRect();
        if (size.width < 60 || size.height < 10) flaws.push(`${size.width} x ${size.height}: ${chart.parentElement.outerHTML.slice(0, 160)}`);
    }
    for (const area of document.querySelectorAll('.area')) {
        if (!area.getAttribute('aria-label')) flaws.push('a chart without a label');
        const frame = area.getBoundingClientRect();
        for (const mark of area.querySelectorAll('.marker, .line')) {
            const at = mark.getBoundingClientRect();
            if (at.right > frame.right + 9 || at.left < frame.left - 9 || at.top < frame.top - 9 || at.bottom > frame.bottom + 9) {
                flaws.push('a mark outside of its chart: ' + area.getAttribute('aria-label'));
                break;
            }
        }
    }
    for (const cell of document.querySelectorAll('.wins td, .wins th, .value')) {
        if (cell.scrollWidth > cell.clientWidth + 1) flaws.push('too narrow: ' + cell.textContent);
    }
    for (const axis of document.querySelectorAll('.x-axis')) {
        const labels = [...axis.children].filter(label => getComputedStyle(label).display !== 'none').map(label => label.getBoundingClientRect());
        labels.sort((a, b) => a.left - b.left);
        for (let i = 1; i < labels.length; i++) {
            if (labels[i].left < labels[i - 1].right) { flaws.push('labels that overlap: ' + axis.textContent); break; }
        }
    }
    for (const element of document.body.querySelectorAll('*')) {
        const says = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (says && element.tagName !== 'title' && parseFloat(getComputedStyle(element).fontSize) < 11.9) flaws.push(`small letters: ${element.outerHTML.slice(0, 120)}`);
    }
    return flaws.slice(0, 8);
})()"#;

#[test]
fn in_a_browser_the_report_fits_and_complains_of_nothing() {
    let Some(program) = installed() else {
        assert!(
            std::env::var_os("LIGHTSWAP_REQUIRE_BROWSER").is_none_or(|value| value != "1"),
            "no Chromium on PATH, and LIGHTSWAP_REQUIRE_BROWSER=1"
        );
        eprintln!("skipped: there is no Chromium on PATH ({})", PROGRAMS.join(", "));
        return;
    };
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results");
    let mut paths: Vec<PathBuf> = fs::read_dir(&recorded).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let recorded: Vec<Results> = paths.iter().map(|path| Results::read(path).unwrap()).collect();

    // Beside the test's program: in the build directory.
    let directory = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("report-screenshots");
    fs::create_dir_all(&directory).unwrap();
    let mut browser = Browser::start(&program);
    for (name, files) in [("full", vec![synthetic::full()]), ("recorded", recorded), ("empty", vec![Results::default()])] {
        let page = directory.join(format!("{name}.html"));
        fs::write(&page, super::html(&files)).unwrap();
        for (width_name, width, height) in WIDTHS {
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}),
            );
            for theme in ["light", "dark"] {
                browser.call("Emulation.setEmulatedMedia", &json!({"features": [{"name": "prefers-color-scheme", "value": theme}]}));
                browser.open(&page);
                let what = format!("{name}, {width_name}, {theme}");
                let dark = browser.evaluate("getComputedStyle(document.body).backgroundColor") == json!("rgb(17, 19, 23)");
                assert_eq!(dark, theme == "dark", "{what}");
                let is_wide = browser.evaluate("innerWidth");
                assert_eq!(is_wide, json!(width), "{what}");
                let num_charts = browser.evaluate("document.querySelectorAll('.area, .track').length").as_u64().unwrap();
                assert!(name == "empty" || num_charts > 20, "{what}: {num_charts} charts");
                assert_eq!(browser.evaluate(FLAWS), json!([]), "{what}");
                assert_eq!(browser.complaints, Vec::<String>::new(), "{what}");
                browser.screenshot(&directory.join(format!("{name}-{width_name}-{theme}.png")));
            }
        }
        // On paper: the width of A4, and light whatever the theme.
        browser.call("Emulation.setDeviceMetricsOverride", &json!({"width": 794, "height": 1123, "deviceScaleFactor": 1, "mobile": false}));
        browser.call("Emulation.setEmulatedMedia", &json!({"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}));
        browser.open(&page);
        assert_eq!(browser.evaluate("getComputedStyle(document.body).backgroundColor"), json!("rgb(255, 255, 255)"), "{name} on paper");
        assert_eq!(browser.evaluate(FLAWS), json!([]), "{name} on paper");
        browser.screenshot(&directory.join(format!("{name}-paper.png")));
        browser.call("Emulation.setEmulatedMedia", &json!({"media": ""}));
    }
}
