//! A stub of `libnvidia-ml.so.1`, compiled from `nvml.c` when a test needs it and loaded through the same FFI path as the real one.
//! What it says stands in a script that a test can change at any time; `nvml.c` tells the statements.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use meterd::domain::time::Nanos;
use meterd::node::gpu::GpuConfig;
use tempfile::TempDir;

/// One library with its own script: a copy of the file, so that the dynamic linker keeps it apart from every other one of this process.
pub(crate) struct Stub {
    folder: TempDir,
}

impl Stub {
    pub(crate) fn new(script: &str) -> Stub {
        let stub = Stub { folder: TempDir::new().unwrap() };
        stub.install();
        stub.says(script);
        std::fs::create_dir(stub.driver_gpus()).unwrap();
        stub
    }

    /// Puts a new library file in the place of the old one, as an upgrade of the driver does.
    pub(crate) fn install(&self) {
        let new = self.folder.path().join("new.so");
        std::fs::copy(compiled(), &new).unwrap();
        std::fs::rename(new, self.library()).unwrap();
    }

    /// From now on the script is this one. The change is atomic.
    pub(crate) fn says(&self, script: &str) {
        let new = self.folder.path().join("new.script");
        std::fs::write(&new, format!("log {}\n{script}\n", self.log_path().display())).unwrap();
        std::fs::rename(new, self.folder.path().join("libnvidia-ml.so.1.script")).unwrap();
    }

    /// The functions that were called so far, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::fs::read_to_string(self.log_path()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// How often this function was called.
    pub(crate) fn calls_count(&self, function: &str) -> usize {
        self.calls().iter().filter(|call| *call == function).count()
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// What stands for `/proc/driver/nvidia/gpus`.
    pub(crate) fn driver_gpus(&self) -> PathBuf {
        self.folder.path().join("gpus")
    }

    /// A configuration that opens this library.
    pub(crate) fn config(&self, interval: Nanos, deadline: Nanos) -> GpuConfig {
        GpuConfig { library: self.library(), interval, deadline, driver_gpus: self.driver_gpus() }
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("calls")
    }
}

/// Compiles the stub, once a process.
fn compiled() -> &'static Path {
    static COMPILED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COMPILED.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("stub.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub_nvml/nvml.c");
        let compiler = std::env::var_os("CC").unwrap_or("cc".into());
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&path).arg(source).args(["-ldl", "-lpthread"]);
        let output = command.output().unwrap_or_else(|error| panic!("a C compiler is needed ({}): {error}", compiler.display()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (folder, path)
    });
    path
}
