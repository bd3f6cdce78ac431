//! The codes of everything that can go wrong on the way to an image. Each match is exhaustive: a new
//! kind of failure does not compile until it has a code.

use agent_api::{ErrorCode, GuestError};
use attestation_agent::BrokerError;
use image_rs::LayerError;
use image_rs::layout::LayoutError;
use image_rs::manifest::ManifestError;
use image_rs::place::PlaceError;
use image_rs::policy::PolicyError;
use image_rs::pull::PullError;
use image_rs::registry::RegistryError;
use image_rs::signature::DocumentsError;
use image_rs::unpack::UnpackError;

use super::PHASE;
use crate::causes::chain;
use crate::fault::is_disk_full;

/// A failure at the broker. Its text has no secret in it, and nothing that the broker said but its ticket.
pub(crate) fn of_broker(error: &BrokerError) -> GuestError {
    with_ticket(
        GuestError::new(broker_code(error), "attest", chain(error)),
        error,
    )
}

/// The same for a resource that the host has named, in a sealed secret or a volume's description. What the broker does
/// not have and what it does not release are told alike: else a host could ask its guest what its owner has.
pub(crate) fn of_named(error: &BrokerError) -> GuestError {
    match error.withheld() {
        Some(told) => with_ticket(
            GuestError::new(ErrorCode::BrokerDenied, "attest", told),
            error,
        ),
        None => of_broker(error),
    }
}

fn with_ticket(told: GuestError, error: &BrokerError) -> GuestError {
    match error.ticket() {
        Some(ticket) => told.with_ticket(ticket),
        None => told,
    }
}

fn broker_code(error: &BrokerError) -> ErrorCode {
    match error {
        BrokerError::Unreachable { .. }
        | BrokerError::Unavailable { .. }
        | BrokerError::Deadline { .. } => ErrorCode::BrokerUnreachable,
        BrokerError::NotRelayed { .. } => ErrorCode::HostNotAllowed,
        BrokerError::Untrusted { .. } => ErrorCode::BrokerUntrusted,
        BrokerError::Denied { .. } | BrokerError::Refused { .. } => ErrorCode::BrokerDenied,
        BrokerError::NotFound { .. } => ErrorCode::ResourceNotFound,
        BrokerError::Version { .. } | BrokerError::Evidence(_) | BrokerError::Rejected { .. } => {
            ErrorCode::AttestationFailed
        }
        BrokerError::TooLarge { .. } | BrokerError::Protocol { .. } | BrokerError::Open { .. } => {
            ErrorCode::KeyUnwrapFailed
        }
    }
}

/// A policy that is none, or whose keys could not be had.
pub(super) fn of_policy(error: &PolicyError) -> GuestError {
    let error_of_guest = GuestError::new(policy_code(error), PHASE, chain(error));
    let ticket = match error {
        PolicyError::Value { source, .. } => source
            .downcast_ref::<BrokerError>()
            .and_then(BrokerError::ticket),
        _ => None,
    };
    match ticket {
        Some(ticket) => error_of_guest.with_ticket(ticket),
        None => error_of_guest,
    }
}

/// A failure of a pull.
pub(super) fn of_pull(error: &PullError) -> GuestError {
    let code = match pull_code(error) {
        // The store writes too.
        ErrorCode::Internal if is_disk_full(error) => ErrorCode::GuestDiskFull,
        code => code,
    };
    GuestError::new(code, PHASE, chain(error))
}

fn pull_code(error: &PullError) -> ErrorCode {
    match error {
        PullError::Policy(error) => policy_code(error),
        PullError::Registry(error) => registry_code(error),
        PullError::Source(error) => place_code(error),
        PullError::Manifest { source, .. } => manifest_code(source),
        PullError::Documents(error) => match error {
            DocumentsError::Digest { .. } | DocumentsError::NotListed { .. } => {
                ErrorCode::DigestMismatch
            }
            DocumentsError::Index(error) => manifest_code(error),
        },
        PullError::Keys { .. } => ErrorCode::KeyUnwrapFailed,
        PullError::Layer { source, .. } => layer_code(source),
        PullError::Merge { source, .. } => unpack_code(source),
        PullError::TooLarge { .. } => ErrorCode::ImageTooLarge,
        PullError::NoSpace { .. } => ErrorCode::GuestDiskFull,
        PullError::Store { .. } => ErrorCode::Internal,
    }
}

fn policy_code(error: &PolicyError) -> ErrorCode {
    match error {
        PolicyError::Refused { .. } | PolicyError::Layout { .. } => ErrorCode::ImageDenied,
        // What could not be asked for may be there: another attempt can succeed.
        PolicyError::Unsigned(refusal) if refusal.lacks_answers() => ErrorCode::RegistryUnreachable,
        PolicyError::Unsigned(_) => ErrorCode::ImageDenied,
        PolicyError::Value { source, .. } => match source.downcast_ref::<BrokerError>() {
            Some(error) => broker_code(error),
            None => ErrorCode::InitDataInvalid,
        },
        PolicyError::TooMany { .. } | PolicyError::Json(_) | PolicyError::Invalid { .. } => {
            ErrorCode::InitDataInvalid
        }
    }
}

fn registry_code(error: &RegistryError) -> ErrorCode {
    match error.decisive() {
        RegistryError::NotFound { .. } => ErrorCode::ImageNotFound,
        RegistryError::Unauthorized { .. }
        | RegistryError::Realm { .. }
        | RegistryError::Token { .. } => ErrorCode::RegistryDenied,
        RegistryError::Unreachable { source, .. } => transport_code(source),
        RegistryError::Digest { .. } => ErrorCode::DigestMismatch,
        RegistryError::TooLarge { .. } => ErrorCode::ImageTooLarge,
        RegistryError::Short { .. }
        | RegistryError::Status { .. }
        | RegistryError::Busy { .. }
        | RegistryError::Range { .. }
        | RegistryError::Length { .. }
        | RegistryError::ContentType { .. }
        | RegistryError::Doubted { .. }
        | RegistryError::Resting { .. }
        | RegistryError::Nowhere { .. }
        | RegistryError::Url { .. } => ErrorCode::RegistryUnreachable,
        RegistryError::Blocked { .. } => ErrorCode::ImageDenied,
        RegistryError::Credentials { .. } | RegistryError::Location { .. } => {
            ErrorCode::InitDataInvalid
        }
    }
}

fn transport_code(error: &transport::Error) -> ErrorCode {
    use transport::Error as E;
    match error {
        E::Dial {
            kind: std::io::ErrorKind::PermissionDenied,
            ..
        } => ErrorCode::HostNotAllowed,
        E::Untrusted { .. } => ErrorCode::RegistryUntrusted,
        E::TooLarge { .. } => ErrorCode::ImageTooLarge,
        E::Dial { .. }
        | E::Proxy { .. }
        | E::HeadTooLarge { .. }
        | E::Tls { .. }
        | E::Timeout { .. }
        | E::Protocol { .. }
        | E::PlainHttp { .. }
        | E::Redirect { .. } => ErrorCode::RegistryUnreachable,
        E::Request { .. } => ErrorCode::ReferenceInvalid,
    }
}

fn place_code(error: &PlaceError) -> ErrorCode {
    match error {
        PlaceError::Name { .. } => ErrorCode::ReferenceInvalid,
        PlaceError::Registry(error) => registry_code(error),
        PlaceError::Layout(error) => layout_code(error),
        PlaceError::Manifest(error) => manifest_code(error),
    }
}

fn layout_code(error: &LayoutError) -> ErrorCode {
    match error {
        LayoutError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            ErrorCode::ImageNotFound
        }
        LayoutError::Io { .. } => ErrorCode::Internal,
        LayoutError::NoImage { .. } => ErrorCode::ImageNotFound,
        LayoutError::TooLarge { .. } => ErrorCode::ImageTooLarge,
        LayoutError::Digest { .. } => ErrorCode::DigestMismatch,
        LayoutError::Name { .. } | LayoutError::Pinned(_) => ErrorCode::ReferenceInvalid,
        LayoutError::NotOne(_)
        | LayoutError::Index { .. }
        | LayoutError::Archive { .. }
        | LayoutError::Size { .. } => ErrorCode::ImageMalformed,
    }
}

fn manifest_code(error: &ManifestError) -> ErrorCode {
    match error {
        ManifestError::Json { .. }
        | ManifestError::Ambiguous
        | ManifestError::Digest(_)
        | ManifestError::Layers { .. } => ErrorCode::ImageMalformed,
        ManifestError::TooMany { .. } | ManifestError::TooLarge { .. } => ErrorCode::ImageTooLarge,
        ManifestError::MediaType(_)
        | ManifestError::Schema1
        | ManifestError::Version(_)
        | ManifestError::Platform { .. }
        | ManifestError::WrongPlatform { .. } => ErrorCode::ImageUnsupported,
    }
}

fn layer_code(error: &LayerError) -> ErrorCode {
    match error {
        LayerError::Fetch(error) => registry_code(error),
        LayerError::Source(error) => place_code(error),
        LayerError::Foreign { .. } => ErrorCode::ImageUnsupported,
        LayerError::GivenUp => ErrorCode::Cancelled,
        LayerError::Digest { .. } | LayerError::DiffId { .. } => ErrorCode::DigestMismatch,
        LayerError::Cipher(_)
        | LayerError::WrappedDigest { .. }
        | LayerError::BadWrappedDigest(_) => ErrorCode::KeyUnwrapFailed,
        LayerError::Decompress(_) => ErrorCode::ImageMalformed,
        LayerError::Unpack(error) => unpack_code(error),
    }
}

fn unpack_code(error: &UnpackError) -> ErrorCode {
    match error {
        UnpackError::Limit { .. } | UnpackError::Ratio { .. } => ErrorCode::ImageTooLarge,
        UnpackError::NoSpace(_) | UnpackError::NoMemory { .. } => ErrorCode::GuestDiskFull,
        // The image is as it should be; the store cannot keep all of it.
        UnpackError::System { .. } | UnpackError::Xattr { .. } => ErrorCode::Internal,
        UnpackError::AccessList(_) | UnpackError::UserXattr { .. } => ErrorCode::ImageUnsupported,
        UnpackError::Read(_)
        | UnpackError::Archive(_)
        | UnpackError::Truncated(_)
        | UnpackError::Checksum
        | UnpackError::Number(_)
        | UnpackError::Sparse { .. }
        | UnpackError::Absolute(_)
        | UnpackError::Parent(_)
        | UnpackError::Name(_)
        | UnpackError::Whiteout(_)
        | UnpackError::Content(_)
        | UnpackError::Loop(_)
        | UnpackError::NotDirectory(_)
        | UnpackError::LinkTarget { .. }
        | UnpackError::LinkDirectory { .. }
        | UnpackError::Device(_)
        | UnpackError::Trusted { .. }
        | UnpackError::Kind { .. } => ErrorCode::ImageMalformed,
    }
}

#[cfg(test)]
mod tests {
    use attestation_agent::{Detail, Step};
    use image_rs::policy::Location;

    use super::*;

    #[test]
    fn what_the_broker_said_does_not_reach_the_host() {
        let sentence = "the policy wants another measurement";
        let detail = || Detail::from(sentence.to_owned());
        let resource = || "kbs:///default/key/1".parse().unwrap();
        let (step, status, ticket) = (Step::Attest, 500, None);
        let of_policy_value = |error: BrokerError| PolicyError::Value {
            location: Location::Broker("kbs:///default/key/1".to_owned()),
            source: Box::new(error),
        };
        for error in [
            BrokerError::Version { detail: detail() },
            BrokerError::Rejected {
                detail: detail(),
                ticket: ticket.clone(),
            },
            BrokerError::Denied {
                resource: resource(),
                detail: detail(),
                ticket,
            },
            BrokerError::NotFound {
                resource: resource(),
                detail: detail(),
                ticket: None,
            },
            BrokerError::Unavailable {
                step,
                status,
                detail: detail(),
            },
            BrokerError::Refused {
                step,
                status,
                detail: detail(),
            },
        ] {
            for told in [
                of_broker(&error),
                of_named(&error),
                of_policy(&of_policy_value(error)),
            ] {
                assert!(!told.to_string().contains(sentence), "{told}");
                assert!(!format!("{told:?}").contains(sentence), "{told:?}");
            }
        }
    }
}
