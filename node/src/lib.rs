//! What every process needs around its core: poll loop, CURVE endpoints, clock, signals, logging, settings. No decisions.
//!
//! A role's shell opens its `NodeIdentity` (who am I), an `Endpoint` (whom do I hear) and a `Clock`, then turns: wait,
//! read the clock once, drain, step the core, perform its actions. Other threads reach the loop by an `Inbox` whose
//! sender rings the endpoint's `Bell`. An endpoint delivers only messages that `admission` let in, so that a core knows
//! of every sender which role and which node it is.

pub mod admission;
pub mod bell;
pub mod certificate;
pub mod channel;
pub mod clock;
pub mod disk;
pub mod endpoint;
pub mod frame;
pub mod identity;
pub mod log;
mod process;
mod queue;
pub mod settings;
pub mod signal;
mod socket;
mod table;
pub mod zap;

pub use bell::Bell;
pub use certificate::{Certificate, CertificateError};
pub use channel::{Inbox, Outbox};
pub use clock::Clock;
pub use endpoint::{Bind, Endpoint, EndpointConfig, EndpointError, Identity, PeerClass, SendError};
pub use frame::{Frame, Frames};
pub use identity::{IdentityError, NodeIdentity};
pub use settings::SettingsError;
