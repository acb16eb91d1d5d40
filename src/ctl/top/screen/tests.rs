//! What stands on the screen, and that the terminal is given back.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::look;
use super::*;

fn screen() -> Screen {
    Screen::new(look::sample(), Shape { what: What::Accounts, sort: Sort::Name, order: Order::Usual, ended: Ended::Hidden })
}

/// The screen's text at this size.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

fn press(screen: &mut Screen, code: KeyCode) -> After {
    screen.key(KeyEvent::new(code, KeyModifiers::NONE))
}

/// As many running jobs, on one account.
fn crowd(count: u64) -> Screen {
    let mut look = look::sample();
    look.status.agent.over_budget = None; // it has a line of its own
    let model = look.jobs[1].clone();
    look.jobs = (0..count)
        .map(|number| {
            let mut job = model.clone();
            job.job = format!("job-{number:04}").parse().unwrap();
            job.missing.clear();
            job.attempt = crate::domain::id::Attempt(number);
            job
        })
        .collect();
    Screen::new(look, screen().shape)
}

#[test]
fn a_wide_screen_shows_everything() {
    insta::assert_snapshot!(drawn(&mut screen(), 130, 12));
}

#[test]
fn a_small_screen_shows_what_matters_most() {
    insta::assert_snapshot!(drawn(&mut screen(), 40, 10));
}

#[test]
fn no_size_is_too_small() {
    for width in [0, 1, 2, 5, 20, 300] {
        for height in [0, 1, 2, 3, 4, 60] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            let mut screen = screen();
            terminal.draw(|frame| screen.draw(frame)).unwrap();
            press(&mut screen, KeyCode::Char('?'));
            terminal.draw(|frame| screen.draw(frame)).unwrap();
        }
    }
}

#[test]
fn many_jobs_are_scrolled_and_no_key_leads_beyond_the_end() {
    let mut screen = crowd(500);
    assert!(drawn(&mut screen, 80, 24).contains("1-20 of 502"));
    for key in [KeyCode::PageDown, KeyCode::Down, KeyCode::PageDown] {
        press(&mut screen, key);
    }
    assert!(drawn(&mut screen, 80, 24).contains("42-61 of 502"));
    press(&mut screen, KeyCode::End);
    let end = drawn(&mut screen, 80, 24);
    assert!(end.contains("483-502 of 502") && end.contains("job-0499"), "{end}");
    press(&mut screen, KeyCode::Home);
    press(&mut screen, KeyCode::Up);
    assert!(drawn(&mut screen, 80, 24).contains("1-20 of 502"));
}

#[test]
fn keys_sort_turn_and_end() {
    let mut screen = screen();
    assert_eq!(press(&mut screen, KeyCode::Char('c')), After::Draw);
    assert_eq!(press(&mut screen, KeyCode::Char('r')), After::Draw);
    assert!(drawn(&mut screen, 100, 20).contains("by CPU, reversed"));
    press(&mut screen, KeyCode::Char('v'));
    assert!(drawn(&mut screen, 100, 20).contains("ACCOUNT"));
    press(&mut screen, KeyCode::Char('a'));
    assert!(drawn(&mut screen, 100, 20).contains("u1000-old"));
    press(&mut screen, KeyCode::Char('?'));
    assert!(drawn(&mut screen, 100, 40).contains("sort by time to zero"));
    assert_eq!(press(&mut screen, KeyCode::Char('x')), After::Nothing);
    for key in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(press(&mut screen, key), After::End);
    }
    assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), After::End);
}

#[test]
fn an_agent_that_went_away_is_an_alarm_over_the_last_look() {
    let mut screen = screen();
    screen.take(Err("No such file or directory".to_owned()));
    let shown = drawn(&mut screen, 100, 20);
    assert!(shown.contains("the agent does not answer") && shown.contains("u1000-train"), "{shown}");
    screen.take(Ok(look::sample()));
    assert!(!drawn(&mut screen, 100, 20).contains("does not answer"));
}

/// Writes its screen and panics.
#[test]
#[ignore = "run by the_terminal_is_given_back_before_a_panic_is_told"]
fn a_screen_that_panics() {
    let _ = with_terminal(|terminal| -> io::Result<()> {
        terminal.draw(|frame| screen().draw(frame))?;
        panic!("planted")
    });
}

#[test]
fn the_terminal_is_given_back_before_a_panic_is_told() {
    use crate::ctl::top::pty::Pty;
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ctl::top::screen::tests::a_screen_that_panics", "--ignored", "--nocapture"]).env("TERM", "xterm");
    let pty = Pty::open(80, 24);
    let before = pty.modes();
    let mut child = pty.spawn(&mut command);
    let text = pty.read_to_end(&mut child);
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what:?} is not in {text:?}"));
    let (entered, left, told) = (place("\x1b[?1049h"), place("\x1b[?1049l"), place("planted"));
    assert!(entered < left && left < told, "{text:?}");
    assert_eq!(pty.modes(), before, "raw mode is left");
}
