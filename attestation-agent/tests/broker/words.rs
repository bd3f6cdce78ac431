//! What the broker says about a refusal is for the owner, and goes no further than the guest.

use attestation_agent::BrokerError;

use crate::script::Reply;
use crate::{error, pair, uri};

/// What a broker without tickets says to everything, Trustee for one.
const SENTENCE: &str = "the detail";

#[tokio::test]
async fn no_text_of_an_error_has_a_sentence_of_the_broker() {
    let prose = "no ticket, but a sentence about the policy";
    for (endpoint, status, kind, ticket, told) in [
        ("auth", 400, "ProtocolVersion", None, "another version"),
        ("attest", 401, "AttestationError", None, "broker's log"),
        (
            "attest",
            401,
            "AttestationError",
            Some(prose),
            "broker's log",
        ),
        ("attest", 400, "Other", None, "refuses attest: status 400"),
        (
            "resource",
            403,
            "PolicyDeny",
            None,
            "denies kbs:///default/key/1",
        ),
        (
            "resource",
            404,
            "ResourceNotFound",
            None,
            "does not have kbs:///default/key/1",
        ),
        (
            "resource",
            410,
            "Other",
            None,
            "refuses resource: status 410",
        ),
        (
            "resource",
            503,
            "Timeout",
            None,
            "unavailable at resource: status 503",
        ),
    ] {
        let (script, broker) = pair().await;
        script.says(endpoint, vec![Reply::error(status, kind, ticket); 20]);
        let error = error(broker.resource(&uri()).await);
        let text = error.to_string();
        assert!(text.contains(told), "{endpoint} {status}: {text}");
        for text in [text, format!("{error:?}")] {
            assert!(!text.contains(SENTENCE) && !text.contains(prose), "{text}");
        }
        assert_eq!(error.ticket(), None);
        assert_eq!(error.detail().unwrap().expose(), SENTENCE);
    }
}

#[tokio::test]
async fn a_text_that_is_no_json_is_for_the_owner_too() {
    let (script, broker) = pair().await;
    script.says("auth", [Reply::Status(418, format!("<p>{SENTENCE}"))]);
    let error = error(broker.resource(&uri()).await);
    assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
    assert!(!error.to_string().contains(SENTENCE), "{error}");
    assert!(error.detail().unwrap().expose().contains(SENTENCE));
}
