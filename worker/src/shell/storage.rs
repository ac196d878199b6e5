//! The storage nodes, as the masters list them, and one thread's connections to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use content::{Holder, HolderAddress};
use node::{Certificate, EndpointError, PeerClass};
use wire::record::NodeRecord;
use wire::{BootNonce, ClientKey, NodeId, Role};

/// The list, shared by the loop that learns it and the threads that use it.
#[derive(Clone, Debug, Default)]
pub(super) struct StorageList(Arc<Mutex<Vec<HolderAddress>>>);

impl StorageList {
    /// The nodes that the settings name.
    pub(super) fn of_settings(servers: &[node::settings::Server]) -> Self {
        let addresses = servers.iter().map(|server| control(&server.endpoint, Some(server.key))).collect();
        Self(Arc::new(Mutex::new(addresses)))
    }

    pub(super) fn replace(&self, nodes: &[NodeRecord]) {
        let addresses = nodes.iter().filter(|node| !node.endpoint.is_empty()).map(address).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    pub(super) fn addresses(&self) -> Vec<HolderAddress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Bulk goes over the local socket where this machine has it, else over the control socket.
fn address(node: &NodeRecord) -> HolderAddress {
    let local = node.bulk_endpoint.strip_prefix("ipc://").filter(|path| Path::new(path).exists());
    if local.is_some() {
        let endpoint = node.bulk_endpoint.clone();
        return HolderAddress { endpoint, key: None, role: Role::Storage, class: PeerClass::Bulk };
    }
    control(&node.endpoint, (node.public_key != ClientKey::default()).then_some(node.public_key))
}

fn control(endpoint: &str, key: Option<ClientKey>) -> HolderAddress {
    HolderAddress { endpoint: endpoint.to_owned(), key, role: Role::Storage, class: PeerClass::Control }
}

/// What a connection needs to know of us.
#[derive(Clone, Debug)]
pub(super) struct Ourselves {
    pub(super) node: NodeId,
    pub(super) boot: BootNonce,
    pub(super) certificate: Certificate,
}

/// One thread's connections to storage nodes, kept between uses.
pub(super) struct Connections {
    ourselves: Ourselves,
    list: StorageList,
    open: BTreeMap<String, Holder>,
}

impl Connections {
    pub(super) fn new(ourselves: Ourselves, list: StorageList) -> Self {
        Self { ourselves, list, open: BTreeMap::new() }
    }

    /// The endpoints of the nodes that there are now; connections to others are closed.
    pub(super) fn endpoints(&mut self) -> Vec<HolderAddress> {
        let addresses = self.list.addresses();
        self.open.retain(|endpoint, _| addresses.iter().any(|address| address.endpoint == *endpoint));
        addresses
    }

    pub(super) fn to(&mut self, address: &HolderAddress) -> Result<&mut Holder, EndpointError> {
        if !self.open.contains_key(&address.endpoint) {
            let Ourselves { node, boot, certificate } = self.ourselves.clone();
            let holder = Holder::connect(node, boot, certificate, address)?;
            self.open.insert(address.endpoint.clone(), holder);
        }
        Ok(self.open.get_mut(&address.endpoint).expect("it was made above"))
    }
}
