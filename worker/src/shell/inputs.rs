//! The inputs of what runs: the mount that they are in, and who did not get what it was to read.
//!
//! A mount can be refused, cut or made anew while programs run, the kernel reads past it, and where there is none a program
//! can write to its inputs. So whatever has ended is asked first whether it can have read anything else than it was promised.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use node::NodeIdentity;
use wire::record::InputCounts;

use super::cache::Cache;
use super::{Shell, ShellError};
use crate::config::Config;
use crate::core::{Event, SlotIndex};
use crate::mount::{Missed, Mount, MountSettings, Parking};
use crate::slot::SlotEvent;
use crate::supply::Supplier;

/// Mounts what programs see of inputs; `None` = it has to be written out.
pub(super) fn mount(
    config: &Config,
    identity: &NodeIdentity,
    cache: &Arc<Cache>,
    supplier: &Supplier,
    parking: Arc<Parking>,
    gate: &Arc<Mutex<()>>,
) -> Option<Arc<Mount>> {
    let Some(dir) = config.mount_dir.clone().or_else(runtime_dir) else {
        tracing::warn!("inputs are written out, not mounted: only root mounts without mount_dir or $XDG_RUNTIME_DIR");
        return None;
    };
    let settings = MountSettings {
        node: identity.node,
        boot: identity.boot.0,
        dir,
        mtime_s: content::SEALED_AT.as_secs() as i64,
        read_timeout: config.read_timeout,
        gate: gate.clone(),
    };
    match Mount::open(settings, cache.clone(), supplier.clone(), parking) {
        Ok(mount) => {
            tracing::info!(path = %mount.path().display(), "inputs are mounted");
            Some(Arc::new(mount))
        }
        Err(error) => {
            tracing::warn!(%error, "inputs are written out, not mounted");
            None
        }
    }
}

/// Where processes of this user keep what belongs to the running machine.
fn runtime_dir() -> Option<PathBuf> {
    // SAFETY: geteuid has no preconditions.
    let is_root = unsafe { libc::geteuid() } == 0;
    let base = if is_root { Some("/run".into()) } else { std::env::var_os("XDG_RUNTIME_DIR") };
    base.map(|base| PathBuf::from(base).join("ziggurat"))
}

/// Takes the mount away when the worker ends, however it does.
pub(super) struct Mounted(pub(super) Option<Arc<Mount>>);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = &self.0 {
            mount.close();
        }
    }
}

impl Shell {
    /// Looks whether those who have ended, and those who run, got what they were to read. Whoever ended for that had been told
    /// after us.
    pub(super) fn look_at_inputs(&mut self, ended: &[(SlotIndex, SlotEvent)]) -> Result<(), ShellError> {
        let mut jobs = BTreeSet::new();
        let mut missed = Vec::new();
        for (slot, event) in ended {
            let current = self.benches.at(*slot).current.as_ref();
            let Some(current) = current.filter(|current| event.is_end() && !current.order.inputs.is_empty()) else {
                continue;
            };
            jobs.insert(current.order.job);
            if current.mount.is_some() && current.mount != self.mount.as_ref().and_then(|mount| mount.standing()) {
                // It may have found nothing, or may have been cut off.
                missed.push(Event::InputMissed { run: current.run });
            }
        }
        match &self.mount {
            Some(mount) => {
                if !jobs.is_empty() {
                    mount.look_at_open();
                }
                for who in mount.missed() {
                    match who {
                        Missed::Below(process) => {
                            missed.extend(self.benches.run_of(process).map(|run| Event::InputMissed { run }));
                        }
                        Missed::Job(job) => missed.push(Event::InputUnreadable { job }),
                    }
                }
            }
            None if jobs.is_empty() => {}
            None => missed.extend(self.cache.spoiled(&jobs).into_iter().map(|job| Event::InputsSpoiled { job })),
        }
        missed.into_iter().try_for_each(|event| self.step(event))
    }

    pub(super) fn input_counts(&self) -> InputCounts {
        match &self.mount {
            Some(mount) => mount.counts(),
            None => InputCounts { bytes_fetched: self.supplier.bytes_fetched(), ..InputCounts::default() },
        }
    }
}
