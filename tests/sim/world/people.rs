//! People and schedulers: who starts, stops, pays, freezes and replaces, and the lives of jobs.

use super::*;

impl World {
    pub(super) fn people(&mut self, what: Ev) {
        if let Ev::Populate(index) | Ev::Blink(index) | Ev::Exit(index) | Ev::Rmdir(index) | Ev::OtherThaw(index) = what {
            let job = &self.jobs[index];
            self.trace.line(self.now, &format!("n{} {} {} {what:?}", job.node, job.name, job.inode));
        }
        match what {
            Ev::Start(index) => self.start(index),
            Ev::Stop(index, ending) => self.stop(index, ending),
            Ev::Change(index) => self.change(index),
            Ev::Work(index) => self.work(index),
            Ev::Populate(index) if !self.jobs[index].exit_for_good => {
                let mono = self.mono_of(index);
                self.jobs[index].populate(mono);
            }
            Ev::Blink(index) if self.jobs[index].place != Place::Own && !self.jobs[index].exit_for_good && !self.jobs[index].stop_said => {
                let mono = self.mono_of(index);
                self.jobs[index].empty(mono);
                let back = self.rng.range(MS, 4 * S);
                self.after(back, Ev::Populate(index));
            }
            Ev::Exit(index) => {
                let mono = self.mono_of(index);
                self.jobs[index].empty(mono);
                self.jobs[index].exit_for_good = true;
            }
            Ev::Rmdir(index) => {
                let mono = self.mono_of(index);
                self.jobs[index].empty(mono);
                self.jobs[index].exit_for_good = true;
                self.jobs[index].gone = true;
            }
            Ev::Respawn(index) => self.respawn(index),
            Ev::OtherFreeze(index) if !self.calm && self.jobs[index].exists() && !self.jobs[index].freeze_bit => {
                let mono = self.mono_of(index);
                let node = self.jobs[index].node;
                let doubt = self.is_held_by_us(node, index);
                let job = &mut self.jobs[index];
                job.freeze(mono, mono);
                job.frozen_by_other = true;
                job.in_doubt = doubt;
                self.trace.line(self.now, &format!("another freezes {}", self.jobs[index].name));
            }
            Ev::OtherThaw(index) if self.jobs[index].exists() => {
                let mono = self.mono_of(index);
                self.jobs[index].thaw(mono);
                let node = self.jobs[index].node;
                self.audit.rough(node, self.now + 3 * S);
            }
            Ev::TopUp(owner, nano) => {
                self.payments += 1;
                let payment = format!("payment-{}", self.payments);
                let deed = Deed::TopUp(self.owners[owner].id.clone(), nano, payment);
                self.to_bank(deed);
            }
            Ev::Policy(owner) => {
                let on_exhaustion = self.rng.pick(&[OnExhaustion::Freeze, OnExhaustion::Terminate, OnExhaustion::Kill]);
                self.owners[owner].policy.on_exhaustion = on_exhaustion;
                let (id, policy) = (self.owners[owner].id.clone(), self.owners[owner].policy);
                for n in 0..self.nodes.len() {
                    self.audit.rough(n, self.now + 30 * S);
                }
                self.to_bank(Deed::Policy(id, policy));
            }
            Ev::Card => {
                let version = self.tariffs.len() as u64 + 1;
                let tariff = Tariff::random(&mut self.rng, version, self.cards);
                self.tariffs.push(tariff);
                for n in 0..self.nodes.len() {
                    self.adopt_card(n);
                }
            }
            Ev::Mode(n, mode) => {
                self.audit.rough(n, self.now + 5 * S);
                let caller = self.caller(n, usize::MAX, Call::Mode);
                self.step(n, Event::EnforcementAsked { caller, mode, by: Uid::ROOT });
            }
            Ev::Confirm(n) => {
                self.audit.rough(n, self.now + 5 * S);
                let caller = self.caller(n, usize::MAX, Call::Mode);
                self.step(n, Event::ConfirmAsked { caller, by: Uid::ROOT });
            }
            _ => {}
        }
    }

    /// Has our own freeze of this job been ordered, or written down, and not undone? Then another's cannot be told from it.
    fn is_held_by_us(&self, node: usize, index: usize) -> bool {
        let target = self.jobs[index].target();
        let replica = self.audit.replica(node).jobs.values();
        let live = self.nodes[node].turn.iter().flat_map(|turn| turn.agent().jobs.values());
        let ours =
            |job: &&Job| job.target == target && (job.frozen_by == Some(FrozenBy::Agent) || self.nodes[node].marks.contains(&job.attempt));
        replica.chain(live).any(|job| ours(&job))
    }

    pub(crate) fn mono_of(&self, index: usize) -> u64 {
        self.nodes[self.jobs[index].node].mono(self.now)
    }

    pub(super) fn caller(&mut self, n: usize, job: usize, call: Call) -> u64 {
        let node = &mut self.nodes[n];
        node.next_caller += 1;
        node.callers.insert(node.next_caller, (job, call));
        node.next_caller
    }

    /// A new job with a random life.
    pub(crate) fn spawn(&mut self, name: &str, account: usize, n: usize, at: u64) -> usize {
        self.inodes += 1;
        let place = self.rng.pick(&[Place::Named, Place::Named, Place::Own, Place::Slurm]);
        let mut job = KernelJob::new(name, account, n, place, self.inodes, self.nodes[n].mono(self.now));
        job.ignores_term = self.rng.chance(300);
        for gpu in 0..self.rng.below(3) {
            let gpu = format!("GPU-{}-{gpu}", self.inodes).parse().unwrap();
            job.gpus.push(HeldGpu { gpu, model: GpuModel::new(self.rng.pick(&MODELS)) });
        }
        let index = self.jobs.len();
        self.jobs.push(job);
        self.at(at, Ev::Start(index));
        index
    }

    pub(super) fn respawn(&mut self, index: usize) {
        let (name, account, n) = (self.jobs[index].name.clone(), self.jobs[index].account, self.jobs[index].node);
        if !self.jobs[index].gone || self.calm {
            return;
        }
        let new = self.spawn(&name, account, n, self.now + MS);
        let length = self.rng.range(2 * S, 60 * S);
        self.plan_life(new, self.now + MS, length);
    }

    /// Work, bursts, and an end with or without a word.
    pub(crate) fn plan_life(&mut self, index: usize, from: u64, length: u64) {
        if self.jobs[index].place != Place::Named {
            let late = if self.rng.chance(500) { self.rng.below(3 * S) } else { 1 };
            self.at(from + MS + late, Ev::Populate(index));
        }
        for _ in 0..self.rng.below(6) {
            let at = from + self.rng.below(length);
            let what = match self.rng.below(13) {
                12 => Ev::Change(index),
                0 => Ev::Blink(index),
                1 => Ev::OtherFreeze(index),
                2 => Ev::Start(index),
                3 if self.jobs[index].place != Place::Slurm => Ev::Stop(index, self.random_ending()),
                _ => Ev::Work(index),
            };
            if let Ev::OtherFreeze(_) = what {
                let thaw = at + self.rng.range(MS, 20 * S);
                self.at(thaw, Ev::OtherThaw(index));
            }
            self.at(at, what);
        }
        let end = from + length;
        if self.rng.chance(200) {
            self.at(end, Ev::Rmdir(index));
        } else {
            self.at(end, Ev::Exit(index));
            let removed = end + self.rng.range(MS, 10 * S);
            self.at(removed, Ev::Rmdir(index));
        }
        if self.rng.chance(700) {
            let ending = self.random_ending();
            let said = (end + self.rng.below(3 * S)).saturating_sub(self.rng.below(2 * S));
            self.at(said, Ev::Stop(index, ending));
            if self.rng.chance(300) {
                let again = said + self.rng.below(S);
                self.at(again, Ev::Stop(index, ending));
            }
        }
        if self.rng.chance(250) {
            let again = end + self.rng.range(10 * S, 20 * S);
            self.at(again, Ev::Respawn(index));
        }
    }

    pub(super) fn random_ending(&mut self) -> Ending {
        Ending { outcome: self.rng.pick(&Outcome::STATED), exit_code: Some(0) }
    }

    pub(super) fn start(&mut self, index: usize) {
        let n = self.jobs[index].node;
        if self.jobs[index].exit_for_good || self.jobs[index].gone {
            return;
        }
        if self.nodes[n].turn.is_none() {
            self.after(S, Ev::Start(index)); // the hook's spool
            return;
        }
        if self.jobs[index].memory_max == 0 {
            self.work(index);
        }
        let mono = self.nodes[n].mono(self.now);
        self.jobs[index].advance(mono);
        let target = self.jobs[index].target();
        let mut sample = self.look_at(n, Attempt(u64::MAX), &target);
        self.nodes[n].reads.remove(&Attempt(u64::MAX));
        if self.jobs[index].place == Place::Slurm && !self.jobs[index].made {
            sample.cpu_ns = Reading::Missing(Missing::NotYet);
        }
        self.audit.baseline(n, mono, index, &mut self.jobs[index]);
        let owner = &mut self.owners[self.jobs[index].account];
        owner.unpaid |= self.bank.books.paid_in.get(&owner.id).is_none_or(|paid_in| *paid_in == 0);
        let job = &self.jobs[index];
        let wanted = Wanted {
            traits: BTreeMap::new(),
            name: job.name.parse().unwrap(),
            account: self.owners[job.account].id.clone(),
            owner: Uid(1_000),
            target,
            time_limit: None,
            cpus: None,
            memory_bytes: None,
            policy: JobPolicy::default(),
            bid: None,
            storage_bytes: None,
            gang: None,
        };
        let gpus = job.gpus.clone();
        let at = self.nodes[n].now(self.now);
        let caller = self.caller(n, index, Call::Start);
        self.step(n, Event::StartAsked(Box::new(PendingStart { caller, wanted, gpus, sample, at, asked: None })));
    }

    pub(super) fn stop(&mut self, index: usize, ending: Ending) {
        let n = self.jobs[index].node;
        if self.nodes[n].turn.is_none() {
            self.after(S, Ev::Stop(index, ending));
            return;
        }
        let name = self.jobs[index].name.clone();
        let resting = |job: &KernelJob| job.node == n && job.name == name && !job.populated && !job.exit_for_good;
        if self.jobs.iter().any(resting) {
            self.after(5 * S, Ev::Stop(index, ending)); // a stop ends a job that has no task: say it once that is not for a moment only
            return;
        }
        for job in self.jobs.iter_mut().filter(|job| job.node == n && job.name == name) {
            job.stop_said = true;
        }
        let name = self.jobs[index].name.parse().unwrap();
        let agent = self.nodes[n].turn.as_ref().map(Turn::agent);
        let attempt = agent.and_then(|agent| agent.job_named(&self.jobs[index].name)).filter(|job| job.is_live()).map(|job| job.attempt);
        let sample = attempt.and_then(|attempt| self.look(n, attempt));
        let agent = self.nodes[n].turn.as_ref().map(Turn::agent);
        let first = agent.zip(attempt).and_then(|(agent, attempt)| agent.jobs.get(&attempt)).is_some_and(|job| job.reported.is_none());
        if first {
            self.shown(n, sample.as_slice()); // a changed repeat is refused, look and all
        }
        let caller = self.caller(n, index, Call::Stop);
        self.step(n, Event::StopAsked { caller, name, ending, sample });
    }

    /// A hook says that a job is given something else. Its price stays, its segment does not.
    pub(super) fn change(&mut self, index: usize) {
        let n = self.jobs[index].node;
        let Some(agent) = self.nodes[n].turn.as_ref().map(Turn::agent) else { return };
        let name = self.jobs[index].name.clone();
        let Some(job) = agent.job_named(&name).filter(|job| job.is_live()) else { return };
        let (attempt, cpus) = (job.attempt, job.cpus.map_or(1, |cpus| cpus + 1));
        let Some(sample) = self.look(n, attempt) else { return };
        self.shown(n, std::slice::from_ref(&sample));
        let change = Change { cpus: Some(cpus), ..Change::default() };
        let caller = self.caller(n, index, Call::Change);
        self.step(n, Event::ChangeAsked { caller, name: name.parse().unwrap(), change, by: Uid::ROOT, sample: Some(sample) });
    }

    pub(super) fn replied(&mut self, n: usize, caller: u64, reply: &Reply) {
        self.audit.replied(n, reply);
        let Some((index, call)) = self.nodes[n].callers.remove(&caller) else { panic!("an answer to a caller that did not ask") };
        if call == Call::Start && matches!(reply, Reply::Refused(_)) && self.rng.chance(700) {
            let again = self.rng.range(S, 5 * S);
            self.after(again, Ev::Start(index));
        }
    }

    pub(super) fn work(&mut self, index: usize) {
        let mono = self.mono_of(index);
        // Idle, a little, or a hundred times that.
        let rate = self.rng.pick(&[0, 10, 80, 1_000, 1_000, CPUS * 1_000]);
        let memory =
            if self.rng.chance(600) && 0 < self.jobs[index].memory_max { self.jobs[index].memory } else { self.rng.range(1, 4 << 30) };
        // All of a machine's jobs share its CPUs.
        let node = self.jobs[index].node;
        let others = (0..self.jobs.len()).filter(|other| *other != index && self.jobs[*other].node == node && !self.jobs[*other].gone);
        let left = (CPUS * 1_000).saturating_sub(others.map(|other| self.jobs[other].rate_milli).sum());
        self.jobs[index].work(mono, (rate / 2).min(left), memory);
    }
}
