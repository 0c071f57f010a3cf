//! Why a process cannot be traced, each in one sentence.

use std::error::Error;
use std::{fmt, io};

/// One sentence: what failed, why, and what to do.
#[derive(Debug)]
pub struct TraceError {
    message: String,
}

impl TraceError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    /// The program, or what belongs to it, could not be loaded.
    pub(super) fn loading(cause: &(dyn Error + 'static)) -> Self {
        match os_error(cause) {
            Some(libc::EPERM) => Self::new(
                "the kernel does not let this process trace page faults: that takes root, or CAP_BPF and CAP_PERFMON (`setcap cap_bpf,cap_perfmon,cap_sys_ptrace+ep` on the program)",
            ),
            Some(libc::EACCES | libc::EINVAL) => Self::new(format!("this kernel refuses the BPF program of the tracer: {}", reason(cause))),
            Some(libc::ENOSYS) => Self::new("this kernel has no BPF (CONFIG_BPF_SYSCALL): nothing can be traced"),
            Some(libc::ENOMEM | libc::E2BIG) => Self::new(format!("there is no memory for the tracer's maps: {}", reason(cause))),
            _ => Self::new(format!("cannot load the BPF program of the tracer: {}", reason(cause))),
        }
    }

    /// It was loaded, and could not be attached.
    pub(super) fn attaching(cause: &(dyn Error + 'static)) -> Self {
        match os_error(cause) {
            Some(libc::ENOENT) => {
                Self::new("this kernel has no tracepoint exceptions:page_fault_user, which the tracer counts at: page faults cannot be traced here")
            }
            Some(libc::EPERM | libc::EACCES) => Self::loading(&io::Error::from_raw_os_error(libc::EPERM)),
            _ => Self::new(format!("cannot attach to the tracepoint exceptions:page_fault_user: {}", reason(cause))),
        }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for TraceError {}

fn chain<'e>(cause: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(cause), |cause| Error::source(*cause))
}

fn os_error(cause: &(dyn Error + 'static)) -> Option<i32> {
    chain(cause).find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// In one line: the causes, and of a verifier's log what it says last before its statistics.
fn reason(cause: &(dyn Error + 'static)) -> String {
    let texts: Vec<String> = chain(cause).map(ToString::to_string).collect();
    let Some(log) = texts.iter().find(|text| text.trim().contains('\n')) else { return texts.join(": ") };
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("processed "));
    let first = lines.next().unwrap_or("no reason given");
    let first = first.split(" Verifier output").next().unwrap_or(first);
    lines.next_back().map_or_else(|| first.into(), |last| format!("{first} ({last})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As aya's, with the system's error inside.
    #[derive(Debug)]
    struct Outer(String, io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    fn outer(text: &str, errno: i32) -> Outer {
        Outer(text.into(), io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn privilege_refusal_and_a_missing_tracepoint_have_a_sentence_each() {
        assert!(TraceError::loading(&outer("map error", libc::EPERM)).to_string().contains("CAP_BPF and CAP_PERFMON"));
        assert!(
            TraceError::attaching(&outer("bpf_raw_tracepoint_open", libc::ENOENT)).to_string().contains("no tracepoint exceptions:page_fault_user")
        );
        assert!(TraceError::attaching(&outer("x", libc::EPERM)).to_string().contains("CAP_PERFMON"));
        let log = "the BPF_PROG_LOAD syscall returned Permission denied. Verifier output: 0: R1=ctx()\n7: (61) r1 = *(u32 *)(r0 +0)\nR0 invalid mem access 'map_value_or_null'\nprocessed 8 insns\n";
        let refused = TraceError::loading(&outer(log, libc::EACCES)).to_string();
        assert!(refused.contains("refuses the BPF program") && refused.contains("R0 invalid mem access"), "{refused}");
        assert!(!refused.contains('\n') && !refused.contains("processed"), "{refused}");
    }
}
