//! What the guest is told of its network.

use agent_api::GuestError;
use agent_api::agent as api;
use agent_api::types::{ARPNeighbor, Interface, Route};
use protobuf::MessageField;
use ttrpc::context::Context;

use super::{Guest, REQUEST_TIMEOUT};

const PHASE: &str = "network";

impl Guest {
    /// Sets up a card, which the guest finds by its hardware address.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn update_interface(&self, interface: Interface) -> Result<(), GuestError> {
        let request = api::UpdateInterfaceRequest {
            interface: MessageField::some(interface),
            ..Default::default()
        };
        let call = self.client.update_interface(Context::default(), &request);
        self.call(PHASE, REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Replaces the guest's routes.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn update_routes(&self, routes: Vec<Route>) -> Result<(), GuestError> {
        let routes = api::Routes {
            Routes: routes,
            ..Default::default()
        };
        let request = api::UpdateRoutesRequest {
            routes: MessageField::some(routes),
            ..Default::default()
        };
        let call = self.client.update_routes(Context::default(), &request);
        self.call(PHASE, REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Sets neighbours, beside those that the guest has.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn add_neighbours(&self, neighbours: Vec<ARPNeighbor>) -> Result<(), GuestError> {
        let neighbors = api::ARPNeighbors {
            ARPNeighbors: neighbours,
            ..Default::default()
        };
        let request = api::AddARPNeighborsRequest {
            neighbors: MessageField::some(neighbors),
            ..Default::default()
        };
        let call = self.client.add_arp_neighbors(Context::default(), &request);
        self.call(PHASE, REQUEST_TIMEOUT, call).await.map(drop)
    }
}
