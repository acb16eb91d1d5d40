//! systemd's side: is the unit installed, enabled, and is there a program to start?

use std::path::{Path, PathBuf};

use super::Findings;

/// Where units are looked for, the strongest first.
const FOLDERS: [&str; 4] = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
const ENABLED: &str = "/etc/systemd/system";

pub(super) fn look(findings: &mut Findings) {
    if !Path::new("/run/systemd/system").is_dir() {
        return findings.advice(
            "no_systemd",
            "systemd does not run here",
            "let something else start the agent, and start it again when it ends",
        );
    }
    let Some(unit) = found("meterd.service") else {
        return findings.warning("unit_absent", "there is no unit meterd.service", "install the units, then systemctl daemon-reload");
    };
    if std::fs::canonicalize(&unit).is_ok_and(|target| target == Path::new("/dev/null")) {
        return findings.error("unit_masked", "meterd.service is masked", "systemctl unmask meterd.service");
    }
    let wanted = |target: &str, unit: &str| Path::new(ENABLED).join(format!("{target}.wants")).join(unit).symlink_metadata().is_ok();
    if !wanted("multi-user.target", "meterd.service") {
        findings.warning("unit_not_enabled", "meterd.service does not start with the node", "systemctl enable meterd.service");
    }
    if found("meterd.socket").is_some() && !wanted("sockets.target", "meterd.socket") {
        let finding = "systemd does not hold the agent's socket: hooks that call while it restarts fail over to the spool";
        findings.warning("socket_not_enabled", finding, "systemctl enable --now meterd.socket");
    }
    let program = program(&std::fs::read_to_string(&unit).unwrap_or_default());
    if let Some(program) = program.filter(|program| !program.exists()) {
        let finding = format!("{} starts {}, which is not there", unit.display(), program.display());
        findings.error("program_absent", finding, "install it, or correct ExecStart=");
    }
}

fn found(unit: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(unit)).find(|path| path.symlink_metadata().is_ok())
}

fn program(unit: &str) -> Option<PathBuf> {
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
    let path = line.trim_start_matches(['-', '@', ':', '+', '!']).split_whitespace().next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_the_unit_that_is_shipped() {
        assert_eq!(program(include_str!("../../../systemd/meterd.service")), Some("/usr/bin/meterd".into()));
        assert_eq!(program("ExecStart=-/bin/x --y\n"), Some("/bin/x".into()));
        assert_eq!(program("[Service]\n"), None);
    }
}
