//! The screen of `meterctl top`. The terminal is given back as it was: at the end, after a panic, and after SIGTERM, SIGINT and SIGHUP.
//!
//! One thread asks the agent, the other draws and reads keys, so that a slow agent never makes the keys slow. Only cells that have
//! changed are written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::look::{Look, Speeds};
use super::rows::{Ended, Fitted, Order, Row, Shape, Sort, Tone, What, headings, rows, shortened};
use crate::ctl::client::{Client, Failure};
use crate::ctl::exit::Exit;

/// How long a signal or a look may wait for the next turn of the loop.
const TURN: Duration = Duration::from_millis(100);
/// Lines of alarms on a screen of this height.
const fn alarms_max(height: u16) -> usize {
    match height {
        0..8 => 1,
        8..15 => 2,
        15..30 => 4,
        _ => 9,
    }
}

/// Shows looks until the user has seen enough.
pub(super) fn run(client: Client, first: Look, interval: Duration, shape: Shape) -> Result<Exit, Failure> {
    let asked_to_end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&asked_to_end)).map_err(Failure::other)?;
    }
    let mut screen = Screen::new(first, shape);
    let looks = looks(client, interval)?;
    with_terminal(|terminal| screen.run(terminal, &looks, &asked_to_end)).map_err(Failure::other)?;
    Ok(Exit::Done)
}

/// Asks the agent, again and again, until nobody wants to know.
fn looks(client: Client, interval: Duration) -> Result<Receiver<Result<Look, String>>, Failure> {
    let (sender, looks) = bounded(1);
    let ask = move || {
        loop {
            std::thread::sleep(interval);
            let look = Look::take(&client).map_err(|failure| failure.to_string().lines().next().unwrap_or_default().to_owned());
            if sender.send(look).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("looks".to_owned()).spawn(ask).map_err(Failure::other)?;
    Ok(looks)
}

/// Takes the terminal, and gives it back whatever happens. A panic inside gives it back before its message is printed.
fn with_terminal<T>(work: impl FnOnce(&mut DefaultTerminal) -> io::Result<T>) -> io::Result<T> {
    let mut terminal = ratatui::try_init()?;
    let done = work(&mut terminal);
    let restored = ratatui::try_restore();
    let done = done?;
    restored.map(|()| done)
}

/// What is shown, and from where.
struct Screen {
    look: Look,
    speeds: Speeds,
    shape: Shape,
    /// The first row shown.
    top: usize,
    /// Rows that had room when it was last drawn, and rows that there were.
    room: usize,
    count: usize,
    help: Help,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Help {
    Shown,
    Hidden,
}

/// What a key has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Draw,
    Nothing,
    End,
}

const KEYS: &[(&str, &str)] = &[
    ("q", "end"),
    ("arrows", "move; page up, page down, home, end too"),
    ("n", "sort by name"),
    ("c", "sort by CPU use"),
    ("m", "sort by memory"),
    ("g", "sort by GPUs"),
    ("b", "sort by cost an hour"),
    ("u", "sort by charge so far"),
    ("o", "sort by what is owed"),
    ("z", "sort by time to zero"),
    ("r", "sort the other way"),
    ("v", "accounts with their jobs, or jobs alone"),
    ("a", "jobs that have ended, too"),
    ("?", "these keys"),
];

impl Screen {
    fn new(first: Look, shape: Shape) -> Screen {
        let mut speeds = Speeds::default();
        speeds.note(&first);
        Screen { look: first, speeds, shape, top: 0, room: 1, count: 0, help: Help::Hidden }
    }

    fn run(&mut self, terminal: &mut DefaultTerminal, looks: &Receiver<Result<Look, String>>, asked_to_end: &AtomicBool) -> io::Result<()> {
        let mut after = After::Draw;
        while after != After::End && !asked_to_end.load(Ordering::Relaxed) {
            if after == After::Draw {
                terminal.draw(|frame| self.draw(frame))?;
            }
            after = After::Nothing;
            if event::poll(TURN)? {
                after = match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => self.key(key),
                    Event::Resize(..) => After::Draw,
                    _ => After::Nothing,
                };
            }
            if let Ok(look) = looks.try_recv() {
                self.take(look);
                after = if after == After::End { After::End } else { After::Draw };
            }
        }
        Ok(())
    }

    /// What is old stays, and says that it is old.
    fn take(&mut self, look: Result<Look, String>) {
        match look {
            Ok(look) => {
                self.speeds.note(&look);
                self.look = look;
            }
            Err(why) => self.look.old = Some(why),
        }
    }

    fn key(&mut self, key: KeyEvent) -> After {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { After::End } else { After::Nothing };
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return After::End,
            KeyCode::Up | KeyCode::Char('k') => self.top = self.top.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.top = self.top.saturating_add(1),
            KeyCode::PageUp => self.top = self.top.saturating_sub(self.room),
            KeyCode::PageDown | KeyCode::Char(' ') => self.top = self.top.saturating_add(self.room),
            KeyCode::Home => self.top = 0,
            KeyCode::End => self.top = usize::MAX,
            KeyCode::Char('r') => {
                self.shape.order = if self.shape.order == Order::Usual { Order::Reversed } else { Order::Usual };
            }
            KeyCode::Char('v') => self.shape.what = if self.shape.what == What::Accounts { What::Jobs } else { What::Accounts },
            KeyCode::Char('a') => self.shape.ended = if self.shape.ended == Ended::Hidden { Ended::Shown } else { Ended::Hidden },
            KeyCode::Char('?' | 'h') => self.help = if self.help == Help::Hidden { Help::Shown } else { Help::Hidden },
            KeyCode::Char(letter) => match sort_of(letter) {
                Some(sort) => self.shape.sort = sort,
                None => return After::Nothing,
            },
            _ => return After::Nothing,
        }
        After::Draw
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let width = usize::from(area.width);
        let mut lines = vec![Line::styled(shortened(&self.look.head(), width), Style::new().add_modifier(Modifier::BOLD))];
        let alarms = self.look.alarms();
        let alarm_style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        lines.extend(
            alarms.iter().take(alarms_max(area.height)).map(|alarm| Line::styled(shortened(&format!("! {alarm}"), width), alarm_style)),
        );
        if self.help == Help::Shown {
            lines.extend(KEYS.iter().map(|(key, what)| Line::raw(shortened(&format!("  {key:<12}{what}"), width))));
        }
        let room = usize::from(area.height).saturating_sub(lines.len() + 2);
        self.table(&mut lines, width, room);
        frame.render_widget(Paragraph::new(lines), Rect { height: area.height.saturating_sub(1), ..area });
        if 1 < area.height {
            let foot = Rect { y: area.bottom() - 1, height: 1, ..area };
            frame.render_widget(
                Paragraph::new(Line::styled(shortened(&self.foot(), width), Style::new().add_modifier(Modifier::REVERSED))),
                foot,
            );
        }
    }

    fn table(&mut self, lines: &mut Vec<Line<'static>>, width: usize, room: usize) {
        let all = rows(&self.look, &self.speeds, self.shape);
        self.room = room.max(1);
        self.top = self.top.min(all.len().saturating_sub(self.room));
        let fitted = Fitted::new(self.shape.what, &all, width);
        let names: Vec<String> = headings(self.shape.what).into_iter().map(|(name, _)| name.to_owned()).collect();
        lines.push(Line::styled(fitted.line(&names), Style::new().add_modifier(Modifier::UNDERLINED)));
        if all.is_empty() {
            lines.push(Line::raw(shortened("no accounts or jobs that you may see", width)));
        }
        let shown = all.iter().skip(self.top).take(room);
        lines.extend(shown.map(|row: &Row| Line::styled(fitted.line(&row.cells), style(row.tone))));
        self.count = all.len();
    }

    fn foot(&self) -> String {
        let last = (self.top + self.room).min(self.count);
        let order = if self.shape.order == Order::Usual { "" } else { ", reversed" };
        let first = if self.count == 0 { 0 } else { self.top + 1 };
        format!("q end  ? keys  {first}-{last} of {}  by {}{order}", self.count, sort_name(self.shape.sort))
    }
}

const fn sort_of(letter: char) -> Option<Sort> {
    Some(match letter {
        'n' => Sort::Name,
        'c' => Sort::Cpu,
        'm' => Sort::Memory,
        'g' => Sort::Gpus,
        'b' => Sort::Burn,
        'u' => Sort::Charge,
        'o' => Sort::Owed,
        'z' => Sort::Zero,
        _ => return None,
    })
}

const fn sort_name(sort: Sort) -> &'static str {
    match sort {
        Sort::Name => "name",
        Sort::Cpu => "CPU",
        Sort::Memory => "memory",
        Sort::Gpus => "GPUs",
        Sort::Burn => "burn",
        Sort::Charge => "charge",
        Sort::Owed => "owed",
        Sort::Zero => "time to zero",
    }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Account => Style::new().add_modifier(Modifier::BOLD),
        Tone::Alarm => Style::new().fg(Color::Red),
        Tone::Waiting => Style::new().fg(Color::Yellow),
        Tone::Ended => Style::new().add_modifier(Modifier::DIM),
        Tone::Plain => Style::new(),
    }
}

#[cfg(test)]
mod tests;
