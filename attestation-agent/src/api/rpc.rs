//! CoCo's ttRPC services: the attestation agent's on one socket, the data hub's on the other.

use std::collections::HashMap;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio_stream::{StreamExt, once, pending};
use ttrpc::Code;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service, TtrpcContext};

use super::generated::attestation_agent as aa;
use super::generated::attestation_agent_ttrpc::{
    AttestationAgentService, create_attestation_agent_service,
};
use super::generated::confidential_data_hub as cdh;
use super::generated::confidential_data_hub_ttrpc::{
    GetResourceService, SealedSecretService, SecureMountService, create_get_resource_service,
    create_sealed_secret_service, create_secure_mount_service,
};
use super::generated::keyprovider as kp;
use super::generated::keyprovider_ttrpc::{KeyProviderService, create_key_provider_service};
use super::hold::Held;
use super::{ApiError, Client, MountRequest};
use crate::{AttestError, BrokerError, HubError};

pub(super) type Services = HashMap<String, Service>;

/// The attestation agent's service for one caller.
pub(super) fn attestation(client: Client) -> Services {
    create_attestation_agent_service(std::sync::Arc::new(For(client)))
}

/// The data hub's services for one caller.
pub(super) fn data_hub(client: Client) -> Services {
    let one = std::sync::Arc::new(For(client));
    let mut services = create_get_resource_service(one.clone());
    services.extend(create_sealed_secret_service(one.clone()));
    services.extend(create_secure_mount_service(one.clone()));
    services.extend(create_key_provider_service(one));
    services
}

/// Serves one connection to its end. A server of its own, so that its services know whose it is.
pub(super) async fn serve(stream: UnixStream, services: Services) {
    let (held, ended) = Held::new(stream);
    // A listener that ends would end its connection.
    let connections = once(std::io::Result::Ok(held)).chain(pending());
    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(services);
    if let Err(error) = server.start().await {
        tracing::warn!(%error, "a connection was not served");
        return;
    }
    let _ = ended.await;
}

struct For(Client);

#[async_trait]
impl AttestationAgentService for For {
    async fn get_evidence(
        &self,
        _: &TtrpcContext,
        request: aa::GetEvidenceRequest,
    ) -> ttrpc::Result<aa::GetEvidenceResponse> {
        let evidence = self.0.evidence(request.RuntimeData).await.map_err(status)?;
        Ok(aa::GetEvidenceResponse {
            Evidence: evidence.to_string().into_bytes(),
            ..Default::default()
        })
    }

    /// A guest has one TEE, and no devices beside it.
    async fn get_additional_evidence(
        &self,
        _: &TtrpcContext,
        _: aa::GetAdditionalEvidenceRequest,
    ) -> ttrpc::Result<aa::GetEvidenceResponse> {
        Ok(aa::GetEvidenceResponse::new())
    }

    async fn get_token(
        &self,
        _: &TtrpcContext,
        request: aa::GetTokenRequest,
    ) -> ttrpc::Result<aa::GetTokenResponse> {
        let token = self.0.token(&request.TokenType).await.map_err(status)?;
        Ok(aa::GetTokenResponse {
            Token: super::rest::token_json(&token).into_bytes(),
            ..Default::default()
        })
    }

    async fn extend_runtime_measurement(
        &self,
        _: &TtrpcContext,
        request: aa::ExtendRuntimeMeasurementRequest,
    ) -> ttrpc::Result<aa::ExtendRuntimeMeasurementResponse> {
        let (domain, operation) = (&request.Domain, &request.Operation);
        let register = request.RegisterIndex;
        let measured = self
            .0
            .measure(domain, operation, &request.Content, register)
            .await
            .map_err(status)?;
        let result = match measured {
            Some(()) => aa::RuntimeMeasurementResult::OK,
            None => aa::RuntimeMeasurementResult::NOT_SUPPORTED,
        };
        Ok(aa::ExtendRuntimeMeasurementResponse {
            Result: result.into(),
            ..Default::default()
        })
    }

    async fn get_tee_type(
        &self,
        _: &TtrpcContext,
        _: aa::GetTeeTypeRequest,
    ) -> ttrpc::Result<aa::GetTeeTypeResponse> {
        Ok(aa::GetTeeTypeResponse {
            tee: self.0.info().tee.to_owned(),
            ..Default::default()
        })
    }

    async fn get_additional_tees(
        &self,
        _: &TtrpcContext,
        _: aa::GetAdditionalTeesRequest,
    ) -> ttrpc::Result<aa::GetAdditionalTeesResponse> {
        Ok(aa::GetAdditionalTeesResponse::new())
    }
}

#[async_trait]
impl GetResourceService for For {
    async fn get_resource(
        &self,
        _: &TtrpcContext,
        request: cdh::GetResourceRequest,
    ) -> ttrpc::Result<cdh::GetResourceResponse> {
        let secret = self
            .0
            .resource(&request.ResourcePath)
            .await
            .map_err(status)?;
        Ok(cdh::GetResourceResponse {
            Resource: secret.expose().to_vec(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl SealedSecretService for For {
    async fn unseal_secret(
        &self,
        _: &TtrpcContext,
        request: cdh::UnsealSecretInput,
    ) -> ttrpc::Result<cdh::UnsealSecretOutput> {
        let secret = self.0.unseal(&request.secret).await.map_err(status)?;
        Ok(cdh::UnsealSecretOutput {
            plaintext: secret.expose().to_vec(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl SecureMountService for For {
    async fn secure_mount(
        &self,
        _: &TtrpcContext,
        request: cdh::SecureMountRequest,
    ) -> ttrpc::Result<cdh::SecureMountResponse> {
        let request = MountRequest {
            volume_type: request.volume_type,
            options: request.options.into_iter().collect(),
            flags: request.flags,
            mount_point: request.mount_point,
        };
        self.0.mount(request).await.map_err(status)?;
        Ok(cdh::SecureMountResponse::new())
    }
}

#[async_trait]
impl KeyProviderService for For {
    async fn wrap_key(
        &self,
        _: &TtrpcContext,
        _: kp::KeyProviderKeyWrapProtocolInput,
    ) -> ttrpc::Result<kp::KeyProviderKeyWrapProtocolOutput> {
        Err(status(ApiError::Unsupported(
            "WrapKey in a guest: images are encrypted by `cloister image encrypt`",
        )))
    }

    async fn un_wrap_key(
        &self,
        _: &TtrpcContext,
        request: kp::KeyProviderKeyWrapProtocolInput,
    ) -> ttrpc::Result<kp::KeyProviderKeyWrapProtocolOutput> {
        let question = &request.KeyProviderKeyWrapProtocolInput;
        let answer = self.0.unwrap_key(question).await.map_err(status)?;
        Ok(kp::KeyProviderKeyWrapProtocolOutput {
            KeyProviderKeyWrapProtocolOutput: answer.expose().to_vec(),
            ..Default::default()
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` has it")]
fn status(error: ApiError) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code(&error), error.to_string()))
}

fn code(error: &ApiError) -> Code {
    match error {
        ApiError::Refused(_) => Code::PERMISSION_DENIED,
        ApiError::Busy => Code::RESOURCE_EXHAUSTED,
        ApiError::Invalid(_) => Code::INVALID_ARGUMENT,
        ApiError::Unsupported(_) => Code::UNIMPLEMENTED,
        ApiError::VerificationKey => Code::UNAVAILABLE,
        ApiError::Measure(_) | ApiError::Mount(_) => Code::INTERNAL,
        ApiError::Hub(error) => match error.broker() {
            Some(BrokerError::Denied { .. } | BrokerError::Rejected { .. }) => {
                Code::PERMISSION_DENIED
            }
            Some(BrokerError::NotFound { .. }) => Code::NOT_FOUND,
            Some(_) => Code::UNAVAILABLE,
            None => of_hub(error),
        },
    }
}

fn of_hub(error: &HubError) -> Code {
    match error {
        HubError::NoBroker | HubError::NoTee => Code::FAILED_PRECONDITION,
        HubError::Evidence(AttestError::ReportData(_)) => Code::INVALID_ARGUMENT,
        HubError::Sealed(_) | HubError::Name(_) | HubError::Packet(_) => Code::INVALID_ARGUMENT,
        HubError::Broker(_) | HubError::VerificationKey { .. } | HubError::Evidence(_) => {
            Code::INTERNAL
        }
    }
}
