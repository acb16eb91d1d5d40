//! Manual pages and completion scripts, made from the definitions of the arguments, so that they say what the programs do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::client::Failure;
use super::exit::Exit;
use super::print;

/// For which shell.
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell, such as bash.
    shell: Shell,
}

/// Where to.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder that stands for /usr/share: man/man1, man/man8 and the shells' folders are made below it.
    dir: PathBuf,
}

/// What the pages say behind what the arguments say: a section's heading and its lines.
type Section = (&'static str, &'static [&'static str]);

const METERD: &[Section] = &[
    ("FILES", &["/etc/meterd/meterd.toml", "/etc/meterd/ratecard.toml", "/var/lib/meterd/", "/run/meterd/meterd.sock"]),
    ("SEE ALSO", &["meterctl(1), /usr/share/doc/meterd/operator.md"]),
];

const METERCTL: &[Section] = &[
    (
        "ENVIRONMENT",
        &[
            "METERD_SOCKET names the agent's socket.",
            "METER_AUTHORITY, METER_AUTHORITY_CA, METER_AUTHORITY_CERT, METER_AUTHORITY_KEY and METER_AUTHORITY_TOKEN_FILE stand for the options of account.",
        ],
    ),
    ("FILES", &["/run/meterd/meterd.sock", "/var/lib/meterd/"]),
    ("SEE ALSO", &["meterd(8), /usr/share/doc/meterd/operator.md, /usr/share/doc/meterd/api.md"]),
];

const AUTHORITY: &[Section] = &[
    ("FILES", &["/etc/meter-authority/authority.toml", "/var/lib/meter-authority/"]),
    ("SEE ALSO", &["meterd(8), meterctl(1), /usr/share/doc/meterd/operator.md, /usr/share/doc/meterd/authority-openapi.json"]),
];

/// Prints one shell's script.
pub(super) fn completions(arguments: &Completions) -> Exit {
    print(&script(arguments.shell, super::Arguments::command()));
    Exit::Done
}

/// Writes all pages and scripts.
pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    for (path, text) in files() {
        let path = arguments.dir.join(path);
        write(&path, &text).map_err(|error| Failure::Other(format!("{}: {error}", path.display())))?;
    }
    Ok(Exit::Done)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    fs::write(path, text)
}

/// Every file below /usr/share, with its text.
fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let meterd = || crate::node::arguments::Arguments::command();
    let meterctl = super::Arguments::command;
    let authority = || crate::authority::run::Arguments::command();
    let mut files = Vec::new();
    pages(meterd().disable_help_subcommand(true), "8", METERD, &mut files);
    pages(meterctl().disable_help_subcommand(true), "1", METERCTL, &mut files);
    pages(authority().disable_help_subcommand(true), "8", AUTHORITY, &mut files);
    for (shell, folder, before, after) in [
        (Shell::Bash, "bash-completion/completions", "", ""),
        (Shell::Zsh, "zsh/vendor-completions", "_", ""),
        (Shell::Fish, "fish/vendor_completions.d", "", ".fish"),
    ] {
        for command in [meterd(), meterctl(), authority()] {
            let path = PathBuf::from(folder).join(format!("{before}{}{after}", command.get_name()));
            files.push((path, script(shell, command).into_bytes()));
        }
    }
    files
}

fn script(shell: Shell, mut command: Command) -> String {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The page of a command and those of its subcommands, as far as they are not hidden.
fn pages(mut command: Command, section: &str, more: &[Section], files: &mut Vec<(PathBuf, Vec<u8>)>) {
    command.build();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let subcommands: Vec<Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect();
    let source = format!("meterd {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).title(name.to_uppercase()).section(section).source(source).manual("meterd");
    let mut text = Vec::new();
    // Writing into memory fails only if the renderer does, and then the page is left out, which a test would see.
    if man.render(&mut text).is_ok() {
        let title = format!(".TH {} {section} ", name.to_uppercase());
        // The renderer leaves an empty date out, and so moves what stands behind it; and roff's input is ASCII.
        let mut text = ascii(&String::from_utf8_lossy(&text).replace(&title, &format!("{title}\"\""))).into_bytes();
        for (heading, lines) in more {
            text.extend_from_slice(format!(".SH \"{heading}\"\n").as_bytes());
            text.extend(lines.join("\n.br\n").replace('-', "\\-").bytes());
            text.push(b'\n');
        }
        files.push((PathBuf::from(format!("man/man{section}/{name}.{section}")), text));
    }
    let above: &[Section] = if section == "8" { &[("SEE ALSO", &["meterd(8)"])] } else { &[("SEE ALSO", &["meterctl(1)"])] };
    for subcommand in subcommands {
        pages(subcommand, section, above, files);
    }
}

/// Other characters by their names in roff.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\[u{:04X}]", u32::from(c)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every visible command of all programs.
    fn commands() -> Vec<Command> {
        fn below(mut command: Command, all: &mut Vec<Command>) {
            command.build();
            let visible: Vec<Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect();
            for sub in visible {
                below(sub, all);
            }
            all.push(command);
        }
        let mut all = Vec::new();
        below(crate::node::arguments::Arguments::command().disable_help_subcommand(true), &mut all);
        below(crate::ctl::Arguments::command().disable_help_subcommand(true), &mut all);
        below(crate::authority::run::Arguments::command().disable_help_subcommand(true), &mut all);
        all
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        let commands = commands();
        assert!(20 < commands.len(), "only {} commands are seen", commands.len());
        for command in commands {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
                let values = argument.get_possible_values();
                let told = values.iter().filter(|value| value.get_help().is_some()).count();
                assert!(told == 0 || told == values.len(), "{} {}: some values have no help", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn every_command_has_a_page_with_every_option_on_it() {
        let files = files();
        for command in commands() {
            let name = command.get_display_name().unwrap_or_else(|| command.get_name());
            let is_page = |path: &Path| path.starts_with("man") && path.file_stem().is_some_and(|stem| stem == name);
            let page = files.iter().find(|(path, _)| is_page(path)).unwrap_or_else(|| panic!("{name} has no page"));
            let text = String::from_utf8(page.1.clone()).unwrap();
            for long in command.get_arguments().filter(|argument| !argument.is_hide_set()).filter_map(clap::Arg::get_long) {
                assert!(text.contains(&format!("\\-\\-{}", long.replace('-', "\\-"))), "{name}: --{long} is not on the page");
            }
        }
        assert!(files.iter().all(|(path, _)| !path.to_string_lossy().contains("run-child")), "what is hidden has no page");
    }
}
