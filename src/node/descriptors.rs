//! How many descriptors the agent may have: about five for each job (its directories, what is read of it, what is watched).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as `meterd.service` asks for: enough for 10,000 jobs.
pub const WANTED: u64 = 65_536;

/// Raises the limit as far as it is allowed, at most to [`WANTED`]; returns what it now is, `None` if there is none.
#[must_use]
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let (now, most) = (limit.current?, limit.maximum.unwrap_or(WANTED));
    // Beyond the hard limit only where the agent may raise that too (CAP_SYS_RESOURCE).
    for wanted in [WANTED, WANTED.min(most)] {
        let raised = Rlimit { current: Some(wanted), maximum: Some(wanted.max(most)) };
        if now < wanted && setrlimit(Resource::Nofile, raised).is_ok() {
            return Some(wanted);
        }
    }
    Some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_the_kernel_says_and_never_falls() {
        let before = getrlimit(Resource::Nofile).current;
        let told = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, told);
        assert!(before.is_none() || before <= told, "{before:?} {told:?}");
    }
}
