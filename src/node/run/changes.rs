//! What is said of a job while it runs: that it is given something else, and what a hook counts. And what its GPUs do.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::Loop;
use crate::domain::agent::start::{Refusal, Reply};
use crate::domain::id::{JobName, Uid};
use crate::domain::meter::{JobSample, Reading};
use crate::domain::request::{ChangeRequest, GpuWanted};
use crate::domain::terms::{Change, Report};
use crate::domain::turn::Event;
use crate::domain::usage::{HeldGpu, Meter};
use crate::node::clock;
use crate::node::gpu::GpuName;

impl Loop {
    /// The job is looked at, so that what it was given before is paid up to now.
    pub(super) fn change(&mut self, name: &JobName, request: &ChangeRequest, by: Uid, reply: oneshot::Sender<Reply>) {
        let resolved = request.gpus.as_ref().map(|gpus| {
            let gpus = self.resolve_gpus(gpus)?;
            self.free_gpus(&gpus, name).map(|()| gpus)
        });
        let gpus = match resolved.transpose() {
            Ok(gpus) => gpus,
            Err(refusal) => return drop(reply.send(Reply::Refused(refusal))),
        };
        let ChangeRequest { cpus, memory_bytes, storage_bytes, ref traits, .. } = *request;
        let change = Change { gpus, cpus, memory_bytes, storage_bytes, traits: traits.clone() };
        let live = self.turn.agent().job_named(name.as_str()).filter(|job| job.is_live()).map(|job| job.attempt);
        let sample = live.and_then(|attempt| self.look_closely(attempt));
        if live.is_some() && sample.is_none() {
            let refusal = Refusal::new("cgroup_unreadable", format!("job {name} cannot be read now"), "try again");
            return drop(reply.send(Reply::Refused(refusal)));
        }
        let caller = self.wait(super::Waiting { reply, caller: None, made: None });
        self.step(Event::ChangeAsked { caller, name: name.clone(), change, by, sample });
    }

    pub(super) fn resolve_gpus(&self, wanted: &[GpuWanted]) -> Result<Vec<HeldGpu>, Refusal> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let Some(gpus) = &self.edges.gpus else {
            return Err(Refusal::new("gpu_no_reading", "GPUs are not read here", "set nvml = \"auto\" under [gpu] in meterd.toml"));
        };
        let look = gpus.look(clock::mono());
        let name = |gpu: &GpuWanted| match gpu {
            GpuWanted::Id(id) => GpuName::Uuid(id.clone()),
            GpuWanted::Index(index) => GpuName::Index(*index),
        };
        let held: Result<Vec<HeldGpu>, _> = wanted.iter().map(|gpu| look.resolve(&name(gpu))).collect();
        held.map_err(|refusal| Refusal::new(refusal.code(), refusal.to_string(), "meterctl status lists the GPUs that the agent sees"))
    }

    /// A device is held by one job at a time: held by two it would be billed twice.
    pub(super) fn free_gpus(&self, gpus: &[HeldGpu], job_name: &JobName) -> Result<(), Refusal> {
        let others = self.turn.agent().jobs.values().filter(|job| job.is_live() && job.name != *job_name);
        let shared = others
            .flat_map(|job| job.gpus.iter().map(move |held| (job, held)))
            .find(|(_, held)| gpus.iter().any(|gpu| gpu.gpu == held.gpu));
        match shared {
            Some((job, held)) => {
                let message = format!("{} is held by job {}", held.gpu, job.name);
                Err(Refusal::new("gpu_held", message, "stop that job first, or hold another GPU"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn report(&mut self, name: JobName, report: Report, reply: oneshot::Sender<Reply>) {
        let caller = self.wait(super::Waiting { reply, caller: None, made: None });
        self.step(Event::Reported { caller, name, report });
    }

    /// Asking the driver for a device's energy takes milliseconds: it is done only where a card prices it.
    pub(super) fn set_energy(&self) {
        if let Some(gpus) = &self.edges.gpus {
            gpus.set_energy(self.turn.agent().cards.values().any(|card| card.prices(Meter::Energy)));
        }
    }

    /// What the held GPUs did goes into the samples, where a card prices it.
    pub(super) fn with_gpus(&self, mut event: Event) -> Event {
        let priced = [Meter::GpuBusy, Meter::GpuMemory, Meter::Energy];
        let agent = self.turn.agent();
        if !agent.cards.values().any(|card| card.prices_any(&priced)) {
            return event;
        }
        let Some(gpus) = &self.edges.gpus else { return event };
        let look = gpus.look(clock::mono());
        let told = |sample: &mut JobSample| {
            let Some(job) = agent.jobs.get(&sample.attempt).filter(|job| !job.gpus.is_empty()) else { return };
            let totals = match &look.gpus {
                Reading::Missing(why) => Reading::Missing(why.clone()),
                Reading::Seen(_) => {
                    let held = job.gpus.iter().filter_map(|held| Some((held.gpu.clone(), look.totals.get(&held.gpu)?.clone())));
                    Reading::Seen(held.collect::<BTreeMap<_, _>>())
                }
            };
            sample.gpus = Some(Box::new(totals));
        };
        match &mut event {
            Event::Ticked(samples) | Event::Looked(samples) | Event::CardArrived(_, samples) => samples.iter_mut().for_each(told),
            Event::StopAsked { sample, .. } | Event::ChangeAsked { sample, .. } => sample.iter_mut().for_each(told),
            Event::Acted(all) => all.iter_mut().flat_map(|(_, sample)| sample).for_each(told),
            _ => {}
        }
        event
    }
}
