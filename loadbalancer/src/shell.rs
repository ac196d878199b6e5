//! Runs a load balancer: moves messages into the core and actions out.

use node::{
    Bind, Certificate, CertificateError, Clock, Endpoint, EndpointConfig, EndpointError, IdentityError, NodeIdentity,
    PeerClass, SettingsError, signal,
};
use wire::{Duration, PeerId, Role};

use crate::config::Config;
use crate::core::{self, Action, Event, LoadBalancer};

/// Messages between two ticks: a tick dispatches, so this many reports at most share one look for work.
const EVENTS_PER_TURN_MAX: usize = 256;
/// How long the last messages may take to leave when the process ends.
const LINGER: Duration = Duration::from_millis(200);

/// Why a load balancer does not run.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the settings name no master: a load balancer needs one at least")]
    NoMasters,
}

/// Runs until SIGTERM or SIGINT. When workers can connect, one line on standard output says where: `ready: CONTROL`.
pub fn run(config: &Config) -> Result<(), ShellError> {
    if config.masters.is_empty() {
        return Err(ShellError::NoMasters);
    }
    let identity = NodeIdentity::open(&config.dir, config.node)?;
    let certificate = Certificate::load(&config.certificate)?;
    let public_key = certificate.public;
    let mut endpoint = Endpoint::open(EndpointConfig {
        binds: vec![Bind { address: config.bind.clone(), class: PeerClass::Control }],
        certificates_dir: Some(config.certificates_dir.clone()),
        ..EndpointConfig::new(identity.node, identity.boot, certificate)
    })?;
    let stop = signal::Stop::install(&endpoint.bell());
    let mut masters = Vec::new();
    for master in &config.masters {
        masters.push(endpoint.connect(&master.endpoint, Some(master.key), Role::Master, PeerClass::Control)?);
    }
    let control = config.endpoint.clone().unwrap_or_else(|| endpoint.bound()[0].clone());
    tracing::info!(node = %identity.node, boot = ?identity.boot, dir = %config.dir.display(), "load balancer is up");
    println!("ready: {control}");

    let core_config = core::Config {
        node: identity.node,
        boot: identity.boot,
        name: config.name.clone(),
        endpoint: control,
        public_key,
        pid: std::process::id(),
        masters,
        timings: config.timings(),
    };
    let clock = Clock::new();
    let mut load_balancer = LoadBalancer::new(core_config, clock.now());
    let (mut messages, mut actions) = (Vec::new(), Vec::new());
    while !stop.requested() {
        endpoint.wait(load_balancer.next_deadline());
        let now = clock.now();
        endpoint.drain(EVENTS_PER_TURN_MAX, &mut |from, _, frames| {
            messages.extend(frames.into_iter().next().map(|frame| (from, frame)))
        });
        for (from, frame) in messages.drain(..) {
            load_balancer.step(Event::Received { from, frame: &frame }, now, &mut actions);
        }
        load_balancer.step(Event::Tick, now, &mut actions);
        for action in actions.drain(..) {
            if let Some(gone) = perform(&mut endpoint, action) {
                load_balancer.step(Event::PeerGone { peer: gone }, now, &mut Vec::new());
            }
        }
    }
    tracing::info!("load balancer ends");
    endpoint.close(LINGER);
    Ok(())
}

/// Does what the core wants; gives back the peer that a message could not be sent to because its connection is gone.
fn perform(endpoint: &mut Endpoint, action: Action) -> Option<PeerId> {
    match action {
        Action::Send { to, frame } => match endpoint.send(to, frame) {
            Ok(()) => None,
            Err(node::SendError::Unreachable) => Some(to),
            // What matters is sent again until it is answered.
            Err(node::SendError::Full) => {
                tracing::debug!(?to, "a message was not sent: too much waits for the peer");
                None
            }
        },
        Action::Note(note) => {
            tracing::info!("{note}");
            None
        }
    }
}
