//! Kata's keys for SEV-SNP and TDX guests.

use toml::Value;

use super::{Honoured, Set};
use crate::config::confidential::{encoded, id_auth, id_block};

pub(super) const GUEST: Honoured = Honoured {
    name: "confidential_guest",
    set: Set::Switch(|config, on| config.vm.confidential.wanted = on),
    get: |config| Value::from(config.tee.hardware().is_some()),
};

pub(super) const SNP: Honoured = Honoured {
    name: "sev_snp_guest",
    set: Set::Switch(|config, on| config.vm.confidential.snp = on),
    get: |config| Value::from(config.vm.confidential.snp),
};

pub(super) const POLICY: Honoured = Honoured {
    name: "snp_guest_policy",
    set: Set::Number(|config, policy| {
        hypervisor::tee::check_policy(policy).map_err(|error| error.to_string())?;
        config.vm.confidential.policy = policy;
        Ok(())
    }),
    get: |config| {
        let policy = config.vm.confidential.policy;
        Value::from(i64::try_from(policy).unwrap_or(i64::MAX))
    },
};

pub(super) const ID_BLOCK: Honoured = Honoured {
    name: "snp_id_block",
    set: Set::Text(|config, text| {
        config.vm.confidential.id_block = id_block(text)?;
        Ok(())
    }),
    get: |config| Value::from(encoded(&config.vm.confidential.id_block)),
};

pub(super) const ID_AUTH: Honoured = Honoured {
    name: "snp_id_auth",
    set: Set::Text(|config, text| {
        config.vm.confidential.id_auth = id_auth(text)?;
        Ok(())
    }),
    get: |config| Value::from(encoded(&config.vm.confidential.id_auth)),
};

pub(super) const QUOTE_PORT: Honoured = Honoured {
    name: "tdx_quote_generation_service_socket_port",
    set: Set::Number(|config, port| {
        let port = u32::try_from(port).map_err(|_| format!("{port} is no vsock port"))?;
        config.vm.confidential.quote_port = port;
        Ok(())
    }),
    get: |config| Value::from(config.vm.confidential.quote_port),
};
