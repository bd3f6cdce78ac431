//! An owner who asks the API itself.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Answer, Deployment, Guest};

/// An appraisal policy that affirms a sample with the reference value's `svn`.
pub(crate) const BY_SVN: &str = "package policy\ndefault hardware := 97\nhardware := 2 if { input.sample.svn in query_reference_value(\"svn\") }\ntrust_claims := {\"hardware\": hardware}\n";

/// A broker whose API is asked as an administrator.
pub(crate) struct Owner {
    pub(crate) deployment: Deployment,
    pub(crate) bearer: String,
}

impl Owner {
    pub(crate) fn start() -> Self {
        let deployment = Deployment::start(&["sample"]);
        let bearer = format!("Bearer {}", deployment.admin_token());
        Self { deployment, bearer }
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<bytes::Bytes>,
    ) -> Answer {
        let headers = [("authorization", self.bearer.as_str())];
        self.deployment.ask(method, path, &headers, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.ask(Method::GET, path, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {:?}", answer.body);
        answer.json()
    }

    pub(crate) async fn register(&self, values: &Value, more: Value) -> Answer {
        let mut message = json!({
            "version": "0.1.0", "type": "sample",
            "payload": BASE64_STANDARD.encode(values.to_string()),
        });
        message
            .as_object_mut()
            .unwrap()
            .append(more.clone().as_object_mut().unwrap());
        self.ask(Method::POST, "reference-value", message.to_string())
            .await
    }

    pub(crate) fn own(&self, args: &[&str]) -> String {
        self.deployment.own(args)
    }

    pub(crate) fn policy(&self, rego: &str, args: &[&str]) {
        let file = self.deployment.write("policy.rego", rego);
        self.own(&[&["policy", "set", "--file", &file], args].concat());
    }

    pub(crate) async fn token(&self) -> String {
        let guest = Guest::challenged(&self.deployment, None).await;
        guest.token(&self.deployment).await
    }

    /// The status that a fresh guest's token has.
    pub(crate) async fn status(&self) -> String {
        let token = self.token().await;
        let claims = token.split('.').nth(1).unwrap();
        let claims: Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let status = claims["submods"]["cpu0"]["ear.status"].as_str();
        status.unwrap().to_owned()
    }
}

/// JSON, one value a line.
pub(crate) fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
