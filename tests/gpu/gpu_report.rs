//! Prints what this machine's GPUs say of themselves, as JSON: `cargo run --example gpu_report [LIBRARY [LOOKS]]`.
//! Reads only. For a look at a real GPU host; hangs where the driver does.

use meterd::domain::time::Nanos;
use meterd::node::gpu::{GpuConfig, gpu_report};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let defaults = GpuConfig::every(Nanos::from_secs(1));
    let library = arguments.next().map_or(defaults.library.clone(), Into::into);
    let looks = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let report = gpu_report(&GpuConfig { library, ..defaults }, looks);
    serde_json::to_writer_pretty(std::io::stdout().lock(), &report)?;
    println!();
    Ok(())
}
