//! The pod's configuration, and what follows from it for the log and for traces.

use agent_api::{ErrorCode, GuestError};
use tracing::info;

use super::create::CreateRequest;
use super::{Tasks, options};
use crate::config::{self, Config, ConfigError};
use crate::log;
use crate::spec::Spec;
use crate::spec::group::Role;

impl Tasks {
    /// The pod's configuration: read by its first container, and kept for the others.
    pub(super) async fn config(
        &self,
        request: &CreateRequest,
        role: &Role,
        spec: &Spec,
    ) -> Result<Config, GuestError> {
        let invalid =
            |error: ConfigError| GuestError::new(ErrorCode::InvalidArgument, "config", error);
        let load = || async {
            let named = options::config_path(request.options.as_ref())?;
            let path = config::choose(named.as_deref(), self.config_variable.as_deref());
            info!(path = ?path, "configuration");
            let config = config::load(path.as_deref()).map_err(invalid)?;
            let config = match role.owns_vm() {
                true => config::annotation::apply(config, &spec.annotations).map_err(invalid)?,
                false => config,
            };
            log::configure(&config.observe);
            self.telemetry.trace_to(config.observe.traces());
            Ok(config)
        };
        self.config.get_or_try_init(load).await.cloned()
    }
}
