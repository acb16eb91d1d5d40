//! Puts the agent together: opens what it remembers, starts the edges, runs the loop on a thread of its own, and takes it all down.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::bounded;

use super::access::Access;
use super::alarm::Alarm;
use super::cgroup::{Sampler, Walker, Which};
use super::config::{AuthorityConfig, CgroupWalk, Config, Nvml, StatusListen, WarnConfig};
use super::gpu::{GpuConfig, Gpus};
use super::gpu_owner::Owners;
use super::handle::{Board, Handle, Inbox, Stats};
use super::hands::Hands;
use super::host;
use super::journal::{self, Journal, JournalError, JournalNotice, JournalThread, Keep, Kept, Recovered, Reserve};
use super::layout::{Layout, Need};
use super::life::{End, Life, SeenEnd};
use super::local_api::Api;
use super::marks::Marks;
use super::notice::{self, Notices, SiteCommand, Telling};
use super::own_folder::{self, Privacy};
use super::priority::Scheduling;
use super::process_tree::ProcessTrees;
use super::random::fresh_epoch;
use super::run::{self, Edges, Ended, Loop, WithoutCgroup};
use super::upstream::{Authority, Upstream};
use super::watch::Watch;
use super::{clock, descriptors, priority, spool_reader, systemd};
use crate::authority::embedded::{Embedded, Notice};
use crate::authority::engine::config::enrol;
use crate::authority::engine::http::Http;
use crate::authority::store::Store;
use crate::domain::agent::{Agent, Settings};
use crate::domain::batch::Batch;
use crate::domain::budget::Budget;
use crate::domain::fact::{Fact, Seq};
use crate::domain::id::{Attempt, BootId, Digest, NodeId, Uid};
use crate::domain::ledger::ClosePolicy;
use crate::domain::meter::{Host, Reading};
use crate::domain::news::News;
use crate::domain::rates::Card;
use crate::domain::time::{Boot, Nanos};
use crate::domain::turn::{JournalState, Turn};

/// Between two looks for what was set aside.
const SET_ASIDE_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// Why the agent did not start. Each has an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot be used.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// A fact or checkpoint cannot be read by this version.
    #[error("journal: {0}: install the version that wrote it; or, to begin anew without it: meterctl journal set-aside")]
    Unreadable(String),
    /// The embedded authority's store cannot be used.
    #[error("authority: {0}")]
    Authority(String),
    /// A folder, socket or thread is not to be had.
    #[error("{what}: {error}")]
    Io {
        /// What was wanted.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

impl StartError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
        move |error| StartError::Io { what: what.into(), error }
    }
}

/// A running agent.
pub struct Daemon {
    node: NodeId,
    handle: Handle,
    thread: JoinHandle<Ended>,
    authority: Arc<Authority>,
    runtime: tokio::runtime::Runtime,
    /// The socket, if the agent made it: one that systemd holds stays for the next agent.
    socket: Option<PathBuf>,
    life: Life,
}

impl Daemon {
    /// Recovers the state, starts every edge and the loop.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running then.
    pub fn start(config: &Config, card: Option<Card>) -> Result<Daemon, StartError> {
        if let Some(limit) = descriptors::raise_limit().filter(|limit| *limit < descriptors::WANTED) {
            tracing::info!(event = "few_descriptors", limit, "jobs beyond about a seventh as many cost more CPU time each");
        }
        folder(&config.state_dir, Privacy::Secret)?;
        folder(&config.runtime_dir, Privacy::Open)?;
        let began = clock::mono();
        let settings = settings(config)?;
        let (journal, agent, replayed) = open_journal(config, settings.boot)?;
        let jobs = agent.jobs.values().filter(|job| job.is_live()).count();
        tracing::info!(event = "recovered", replayed, jobs, took_ms = clock::mono().since(began).millis());
        let (inbox, queue) = bounded(run::QUEUE_MAX);
        let board = Arc::new(Board::default());
        let handle = Handle::new(inbox, Arc::clone(&board));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("meterd-net")
            .enable_all()
            .build()
            .map_err(StartError::io("network threads"))?;
        let (edges, mut stats) = edges(config, &settings.node, journal, &handle)?;
        let seen = systemd::runtime_dir().and_then(|folder| SeenEnd::take(&folder));
        let (life, said) = Life::begin(&config.state_dir, env!("CARGO_PKG_VERSION"), settings.boot, clock::now(), seen.as_ref());
        for (alarm, message) in said {
            stats.alarms.raise(alarm, clock::now(), message);
        }
        runtime.spawn(attend_set_aside(config.state_dir.clone(), handle.clone()));
        let socket = config.runtime_dir.join("meterd.sock");
        let socket = serve(config, &handle, &edges.authority, &runtime, socket)?;
        let authority = Arc::clone(&edges.authority);
        let epoch = fresh_epoch().map_err(StartError::io("random bits"))?;
        let marked = edges.marks.all().map_err(StartError::io("the marks of frozen jobs"))?;
        let node = settings.node.clone();
        let (turn, woken) = Turn::wake(agent, settings, clock::now(), epoch, &marked);
        if let Some(card) = card {
            handle.report(Inbox::Card(Box::new(card)));
        }
        let ready = handle.clone();
        let mut told = false;
        let on_tick = move || {
            if !told && ready.picture().view.is_some() {
                told = true;
                systemd::ready();
            }
            systemd::alive();
        };
        let thread = spawn_loop(turn, edges, queue, handle.clone(), (stats, config.budget), Box::new(on_tick), woken)?;
        Ok(Daemon { node, handle, thread, authority, runtime, socket, life })
    }

    /// What the node is called.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// A way to speak to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Who keeps the balances.
    #[must_use]
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority)
    }

    /// Waits until the loop has ended, and takes the rest down.
    #[must_use]
    pub fn wait(self) -> Ended {
        let ended = self.thread.join().unwrap_or_else(|_| Ended::Fatal("the loop's thread panicked".to_owned()));
        self.life.end(match &ended {
            Ended::Drained => End::Drained,
            Ended::Fatal(why) => End::Fatal(why.clone()),
        });
        self.runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        if let Some(socket) = &self.socket
            && let Err(error) = std::fs::remove_file(socket)
        {
            tracing::debug!(event = "socket_left", %error);
        }
        ended
    }
}

fn spawn_loop(
    turn: Turn,
    edges: Edges,
    queue: crossbeam_channel::Receiver<Inbox>,
    handle: Handle,
    (mut stats, budget): (Stats, Budget),
    on_tick: Box<dyn FnMut() + Send>,
    woken: Vec<crate::domain::turn::Effect>,
) -> Result<JoinHandle<Ended>, StartError> {
    let body = move || {
        stats.loop_scheduling = shown(&priority::raise_priority());
        Loop::new(turn, edges, queue, handle, (stats, budget), on_tick).run(woken)
    };
    std::thread::Builder::new().name("meterd-loop".to_owned()).spawn(body).map_err(StartError::io("the loop's thread"))
}

fn shown(scheduling: &Reading<Scheduling>) -> String {
    match scheduling {
        Reading::Seen(Scheduling::RoundRobin { priority }) => format!("SCHED_RR {priority}"),
        Reading::Missing(why) => format!("as any other thread: {why}"),
    }
}

fn folder(path: &Path, privacy: Privacy) -> Result<(), StartError> {
    own_folder::make(path, privacy).map_err(StartError::io(path.display().to_string()))
}

fn keep(config: &Config) -> Keep {
    Keep { age: Nanos::from_secs(u64::from(config.journal.keep_days) * 86_400), bytes: u64::from(config.journal.keep_mib) << 20 }
}

/// The state: the last checkpoint, and every fact after it.
///
/// # Errors
/// [`StartError::Unreadable`], where this version does not know what is stored.
pub fn recover(recovered: &Recovered) -> Result<Agent, StartError> {
    let mut agent = match &recovered.checkpoint {
        Some((seq, bytes)) => {
            let agent = Agent::decode(bytes).filter(|agent| agent.seq == Seq(*seq));
            agent.ok_or_else(|| StartError::Unreadable(format!("the checkpoint after fact {seq} is of another version")))?
        }
        None => Agent::default(),
    };
    for (seq, bytes) in &recovered.facts {
        let fact = Fact::decode(bytes).map_err(|error| StartError::Unreadable(format!("fact {seq}: {error}")))?;
        agent.apply(&fact);
        if agent.seq != Seq(*seq) {
            return Err(StartError::Unreadable(format!("fact {seq} stands where {} belongs", agent.seq.0)));
        }
    }
    Ok(agent)
}

/// The journal, the state in it, and how many facts were read for it. One that is damaged is set aside, and a new one begins with what is
/// left of the state.
fn open_journal(config: &Config, boot: BootId) -> Result<(Journal, Agent, usize), StartError> {
    let (dir, machine) = (&config.state_dir, clock::machine());
    let (mut journal, recovered, why) = Journal::open_or_set_aside(dir, keep(config), machine, clock::now().wall)?;
    if let Some(why) = why {
        tracing::error!(event = "journal_set_aside", %why);
    }
    let is_new = recovered.checkpoint.is_none() && recovered.facts.is_empty();
    let Some(folder) = journal::unread_aside(dir).filter(|_| is_new) else {
        return Ok((journal, recover(&recovered)?, recovered.facts.len()));
    };
    let agent = salvage(&folder, machine, boot);
    let checkpoint = Some(agent.encode());
    journal.commit(&Batch { first_seq: 1, checkpoint, ..Batch::default() })?;
    journal::note_read(&folder).map_err(StartError::io(folder.display().to_string()))?;
    Ok((journal, agent, 0))
}

/// What is left of the state, as far as the journal that was set aside can be believed.
fn salvage(folder: &Path, machine: Option<Digest>, boot: BootId) -> Agent {
    let mut agent = Agent::default();
    let last = journal::good_prefix(folder, machine, |kept| match kept {
        Kept::Checkpoint(seq, bytes) => {
            agent = Agent::decode(bytes).filter(|agent| agent.seq == Seq(seq)).unwrap_or_default();
        }
        Kept::Fact(seq, bytes) => {
            if agent.seq.0.checked_add(1) == Some(seq)
                && let Ok(fact) = Fact::decode(bytes)
            {
                agent.apply(&fact);
            }
        }
    });
    let counters = counters(&agent, boot);
    let salvaged = agent.salvaged(boot, clock::now(), &counters);
    let jobs: Vec<String> = salvaged.jobs.values().map(|job| job.name.to_string()).collect();
    tracing::error!(event = "salvaged", facts = last, ?jobs, "these jobs are counted from now on, in a new epoch; others are not known");
    salvaged
}

/// The CPU time of each live job, as it is read now.
fn counters(agent: &Agent, boot: BootId) -> BTreeMap<Attempt, u64> {
    let mut sampler = Sampler::new(Layout::detect().ok().map(Arc::new), ProcessTrees::default(), clock::mono);
    for job in agent.jobs.values().filter(|job| job.is_live() && job.boot == boot) {
        if let Err(error) = sampler.attach(job.attempt, &job.target) {
            tracing::warn!(event = "not_attached", job = %job.name, %error);
        }
    }
    let seen = sampler.sample(Which::All);
    seen.iter().filter_map(|sample| Some((sample.attempt, *sample.cpu_ns.seen()?))).collect()
}

/// Says that something was set aside, for as long as it lies there.
async fn attend_set_aside(state_dir: PathBuf, handle: Handle) {
    let mut clock = tokio::time::interval(SET_ASIDE_EVERY);
    loop {
        clock.tick().await;
        let folders = journal::list_aside(&state_dir);
        let message = folders.last().map(|folder| format!("{} damaged journals are kept, the last in {}", folders.len(), folder.display()));
        handle.report(Inbox::Alarm(Alarm::JournalSetAside, message));
    }
}

fn settings(config: &Config) -> Result<Settings, StartError> {
    let report = host::read().ok();
    let host = report.as_ref().map_or(Host::default(), |report| report.totals);
    let named = config.node.clone().or_else(|| report.and_then(|report| report.hostname.parse::<NodeId>().ok()));
    Ok(Settings {
        node: named.unwrap_or_else(fallback_node),
        boot: clock::boot_id().map_err(StartError::io("boot id"))?,
        enforcement: config.enforcement,
        interval: config.interval,
        host,
        ladder: config.ladder.clone(),
        provider: config.provider.clone(),
        woke_at: Boot::default(),
    })
}

fn edges(config: &Config, node: &NodeId, journal: Journal, handle: &Handle) -> Result<(Edges, Stats), StartError> {
    let (layout, shown_layout) = match Layout::detect() {
        Ok(layout) => {
            let shown = layout.mode().map_or_else(|| "none".to_owned(), |mode| format!("{mode:?}").to_lowercase());
            (Some(Arc::new(layout)), shown)
        }
        Err(error) => {
            tracing::warn!(event = "no_cgroups", %error);
            (None, error.to_string())
        }
    };
    let needs = |layout: &Arc<Layout>| Need::ALL.map(|need| (need.name().to_owned(), layout.served(need).to_string())).into();
    let cgroup_needs = layout.as_ref().map(needs).unwrap_or_default();
    let trees = ProcessTrees::default();
    let acted = handle.clone();
    let hands = Hands::start(layout.clone(), trees.clone(), move |done| acted.report(Inbox::Acted(done)));
    let hands = hands.map_err(StartError::io("the hands' thread"))?;
    let emptied = handle.clone();
    let watch = Watch::start(layout.clone(), trees.clone(), move |attempt| emptied.report(Inbox::Emptied(attempt)));
    let room = descriptors::Room::within_limit();
    let watch = watch.map_err(StartError::io("the watcher's thread"))?.within(Arc::clone(&room));
    let durable = handle.clone();
    let mut told = JournalState::Writable;
    let journal = JournalThread::start(journal, move |notice| tell_journal(&durable, &mut told, &notice));
    let journal = journal.map_err(StartError::io("the journal's thread"))?;
    let notices = Notices::start(telling(config)).map_err(StartError::io("the thread that tells people"))?;
    let authority = authority(config, handle, (&notices, node))?;
    let owners = Owners::default();
    let gpus = gpus(config, &owners).map_err(StartError::io("the GPU thread"))?;
    let link = authority.link();
    let stats = Stats { hands_scheduling: shown(&hands.scheduling()), cgroup_layout: shown_layout, cgroup_needs, link, ..Stats::default() };
    let sampler = Sampler::new(layout.clone(), trees.clone(), clock::mono).within(room);
    let (sampler, cgroup_reads) = walking(config, sampler);
    let stats = Stats { cgroup_reads, ..stats };
    let without_cgroup = if rustix::process::geteuid().is_root() { WithoutCgroup::Refuse } else { WithoutCgroup::ProcessTree };
    let edges = Edges {
        notices,
        layout,
        cgroup_parent: PathBuf::from(&config.cgroup.parent),
        without_cgroup,
        trees,
        sampler,
        hands,
        marks: Marks::open(&config.runtime_dir).map_err(StartError::io("the folder of marks"))?,
        watch,
        journal,
        authority: Arc::new(authority),
        gpus,
        owners,
    };
    Ok((edges, stats))
}

/// The reader, walking if it may; and how it reads, for people.
fn walking(config: &Config, sampler: Sampler) -> (Sampler, String) {
    if config.cgroup.walk == CgroupWalk::Off {
        return (sampler, "files (cgroup.walk is off)".to_owned());
    }
    match Walker::load() {
        Ok(walker) => (sampler.walking(walker), "walk".to_owned()),
        Err(error) => (sampler, format!("files ({error})")),
    }
}

/// Whom to tell how. A command without its user is not run: never as root.
fn telling(config: &Config) -> Telling {
    let WarnConfig { terminals, command, user } = &config.warn;
    let command = if command.is_empty() { None } else { Some(command.clone()) };
    let found = command.as_ref().and_then(|_| uzers::get_user_by_name(user)).map(|user| (user.uid(), user.primary_group_id()));
    let found = found.filter(|(uid, _)| *uid != 0);
    if command.is_some() && found.is_none() {
        tracing::error!(event = "no_such_user", %user, "[warn] command is not run: no such user, or root by another name");
    }
    Telling { terminals: *terminals, command: command.zip(found).map(|(words, user)| SiteCommand { words, user: Some(user) }) }
}

fn gpus(config: &Config, owners: &Owners) -> io::Result<Option<Gpus>> {
    match config.gpu.nvml {
        Nvml::Off => Ok(None),
        Nvml::Auto => {
            let wanted = GpuConfig { library: PathBuf::from(&config.gpu.library), ..GpuConfig::every(config.interval) };
            Gpus::start(wanted, owners.as_owner()).map(Some)
        }
    }
}

/// Passes the journal's word on; the state of its disk only when that has changed.
fn tell_journal(handle: &Handle, told: &mut JournalState, notice: &JournalNotice) {
    let state = match notice {
        JournalNotice::Durable { seq, reserve } => {
            handle.report(Inbox::Durable(Seq(*seq)));
            handle.board().tell_durable(*seq);
            match reserve {
                Reserve::Kept => JournalState::Writable,
                Reserve::InUse => JournalState::Full,
            }
        }
        JournalNotice::Full(error) => {
            let alarm = if matches!(error, JournalError::ReadOnly(_)) { Alarm::JournalReadOnly } else { Alarm::JournalFull };
            handle.report(Inbox::Alarm(alarm, Some(format!("{error}: no new starts; what is held is enforced from memory"))));
            JournalState::Full
        }
        JournalNotice::Fatal(error) => return handle.report(Inbox::Fatal(format!("journal: {error}"))),
    };
    if *told != state {
        *told = state;
        if state == JournalState::Writable {
            handle.report(Inbox::Alarm(Alarm::JournalFull, None));
            handle.report(Inbox::Alarm(Alarm::JournalReadOnly, None));
        } else if matches!(notice, JournalNotice::Durable { .. }) {
            let message = "the disk was full: only the last readings are written until the reserve is there again";
            handle.report(Inbox::Alarm(Alarm::JournalFull, Some(message.to_owned())));
        }
        handle.report(Inbox::JournalIs(state));
    }
}

/// Who keeps the balances: this process over a file of its own, or somebody out there.
fn authority(config: &Config, handle: &Handle, (people, node): (&Notices, &NodeId)) -> Result<Authority, StartError> {
    let to = handle.clone();
    match &config.authority {
        AuthorityConfig::Network(network) => {
            Upstream::start(network.clone(), to).map(Authority::Network).map_err(StartError::io("the thread that asks the authority"))
        }
        AuthorityConfig::Embedded => {
            let unusable = |error: &dyn std::fmt::Display| StartError::Authority(error.to_string());
            let engine = config.engine.clone().map(Http::open).transpose().map_err(|error| unusable(&error))?;
            let mut store = Store::open(&config.state_dir.join("authority.db"), ClosePolicy::OnSuccessor, clock::mono())
                .map_err(|error| unusable(&error))?;
            enrol(&mut store, config.engine.as_ref(), clock::now()).map_err(|error| unusable(&error))?;
            let (people, node) = (people.clone(), node.clone());
            let started = Embedded::start(store, clock::now, move |notice| tell_authority(&to, (&people, &node), notice));
            let started = match engine {
                Some(http) => started.and_then(|embedded| embedded.with_engine(http, clock::now)),
                None => started,
            };
            started.map(Authority::Embedded).map_err(StartError::io("the authority's thread"))
        }
    }
}

fn tell_authority(handle: &Handle, (people, node): (&Notices, &NodeId), notice: Notice) {
    let message = match notice {
        Notice::Push(push, _) => Inbox::Pushed(push),
        Notice::Gang(push) => Inbox::GangPushed(push.want),
        Notice::Account(account, what) => {
            tracing::info!(event = "account", %account, ?what);
            let news = News::of(&what);
            people.tell(Some(notice::Notice::Account { node: node.clone(), account: account.clone(), what }));
            match news {
                Some(news) => Inbox::Told(account, news),
                None => return,
            }
        }
        Notice::Full(error) => Inbox::Alarm(Alarm::AuthorityFull, Some(format!("{error}: questions stay unanswered until there is space"))),
        Notice::Recovered => Inbox::Alarm(Alarm::AuthorityFull, None),
        Notice::Fatal(error) => Inbox::Fatal(format!("authority: {error}")),
    };
    handle.report(message);
}

/// Who may do what. A user that the system does not know is left out, and named in the log.
fn access(config: &Config) -> Access {
    let uid_of = |name: &str| uzers::get_user_by_name(name).map(|user| Uid(user.uid()));
    let accounts = config.access.by_uid(uid_of).unwrap_or_else(|unknown| {
        for user in &unknown {
            tracing::error!(event = "unknown_user", user = %user.0, "in [access.accounts]: nobody may use these accounts by that name");
        }
        let known = |name: &str| uid_of(name).or(Some(Uid(u32::MAX))); // nobody's uid
        config.access.by_uid(known).unwrap_or_default()
    });
    let operators = uzers::get_group_by_name(&config.access.operators_group);
    if operators.is_none() {
        tracing::info!(event = "no_operators_group", group = %config.access.operators_group, "only root and the agent's user are operators");
    }
    Access {
        agent: Uid(rustix::process::geteuid().as_raw()),
        operators_gid: operators.map(|group| group.gid()),
        hooks: config.access.hook_uids.iter().copied().collect(),
        accounts: accounts.into_iter().map(|(uid, accounts)| (uid, accounts.into_iter().collect())).collect(),
    }
}

/// The Unix socket for everybody on the machine, and the loopback port for looking. Gives back the socket's path if it was made here.
fn serve(
    config: &Config,
    handle: &Handle,
    authority: &Arc<Authority>,
    runtime: &tokio::runtime::Runtime,
    socket: PathBuf,
) -> Result<Option<PathBuf>, StartError> {
    let access = access(config);
    runtime.spawn(spool_reader::attend(config.state_dir.join("spool"), access.clone(), handle.clone()));
    let api = Api::with_policy(handle.clone(), Arc::clone(authority), config.state_dir.clone(), access, config.interval, config.policy);
    let (listener, made) = match systemd::unix_listener() {
        Some(held) => (held, None),
        None => (bind(&socket).map_err(StartError::io(socket.display().to_string()))?, Some(socket)),
    };
    listener.set_nonblocking(true).map_err(StartError::io("the socket"))?; // systemd hands it over blocking
    let _inside = runtime.enter();
    let listener = tokio::net::UnixListener::from_std(listener).map_err(StartError::io("the socket"))?;
    spawn_door(runtime, "socket", api.clone().serve_unix(listener));
    let tcp = match (systemd::tcp_listener(), config.status) {
        (Some(listener), _) => Some(listener),
        (None, StatusListen::On(address)) => Some(std::net::TcpListener::bind(address).map_err(StartError::io(address.to_string()))?),
        (None, StatusListen::Off) => None,
    };
    if let Some(listener) = tcp {
        listener.set_nonblocking(true).map_err(StartError::io("the status port"))?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(StartError::io("the status port"))?;
        spawn_door(runtime, "status port", api.serve_tcp(listener));
    }
    Ok(made)
}

fn spawn_door(runtime: &tokio::runtime::Runtime, name: &'static str, serving: impl Future<Output = io::Result<()>> + Send + 'static) {
    runtime.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(event = "door_closed", name, %error);
        }
    });
}

/// The journal's lock is ours by now, so a socket that lies there is an ended agent's.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// A name for a machine whose host name is no name.
fn fallback_node() -> NodeId {
    #[expect(clippy::expect_used, reason = "the literal is a valid name")]
    "node".parse().expect("a valid name")
}
