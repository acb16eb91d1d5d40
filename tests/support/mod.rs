//! Says of each part that needs a real neighbour whether it was run, and makes "not run" a failure where that is asked for.

/// `RAN part`, or `NOT RUN part: reason`. With `METERD_REQUIRE=kernel,slurm,…` a named part that cannot run fails the test.
/// Returns what the part needs, or `None` when it cannot run here.
pub(crate) fn need<T>(part: &str, available: Result<T, String>) -> Option<T> {
    let required = std::env::var("METERD_REQUIRE").unwrap_or_default();
    match available {
        Ok(value) => {
            println!("RAN {part}");
            Some(value)
        }
        Err(reason) => {
            println!("NOT RUN {part}: {reason}");
            assert!(!required.split(',').any(|name| name.trim() == part), "METERD_REQUIRE has {part}, but: {reason}");
            None
        }
    }
}
