//! What the broker reads of its owners: reference values in CoRIM, policies and their scopes.

use ciborium::{Value, cbor};
use policies::{
    corim::{Corim, CorimError},
    reference::Provenance,
    release::ReleasePolicy,
    scopes::{Prefix, Selector},
};

use crate::{Target, text, texts};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "policy_corim",
        run: corim,
        seeds: corims,
    },
    Target {
        name: "policy_scope",
        run: scope,
        seeds: scopes,
    },
    Target {
        name: "policy_rego",
        run: rego,
        seeds: policies,
    },
];

/// As the broker reads one: a signed one too, as if its signature were right, since whoever has a
/// key may still write what no tool would.
fn corim(data: &[u8]) {
    let values = match Corim::read(data) {
        Ok(Corim::Unsigned(manifest)) => {
            manifest.reference_values(&Provenance::Unsigned(String::new()))
        }
        Ok(Corim::Signed(signed)) => {
            signed.reference_values(|_| Ok::<_, CorimError>("anybody".to_owned()))
        }
        Err(_) => return,
    };
    for value in values.into_iter().flatten() {
        assert!(!value.name.is_empty(), "a value without a name");
        assert!(!value.versions.is_empty(), "a name without a value");
    }
}

fn scope(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(prefix) = text.parse::<Prefix>() {
        assert_eq!(prefix.to_string().parse().ok(), Some(prefix));
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.to_string().parse().ok(), Some(selector));
    }
}

/// All kinds of policies are read by one parser.
fn rego(data: &[u8]) {
    if let Some(text) = text(data) {
        let _ = ReleasePolicy::from_rego(text);
    }
}

fn corims() -> Vec<Vec<u8>> {
    let Some(manifest) = manifest() else {
        return Vec::new();
    };
    let headers = cbor!({
        1 => -7, 3 => "application/rim+cbor", 4 => "key", 15 => {1 => "ACME", 4 => 180, 5 => 110}
    });
    let signed = headers.ok().map(|headers| {
        let parts = vec![
            Value::Bytes(bytes(&headers)),
            Value::Map(Vec::new()),
            Value::Bytes(bytes(&manifest)),
            Value::Bytes(vec![7; 64]),
        ];
        tag(502, tag(18, Value::Array(parts)))
    });
    let outer = tag(500, tag(502, manifest.clone()));
    let all = [Some(manifest), signed, Some(outer)];
    all.iter().flatten().map(bytes).collect()
}

fn manifest() -> Option<Value> {
    let digest = Value::Array(vec![1.into(), Value::Bytes(vec![0xab; 32])]);
    let uuid = tag(37, Value::Bytes((0..16).collect()));
    let raw = tag(560, Value::Bytes(vec![1, 2]));
    let comid = cbor!({
        1 => {0 => "id"},
        4 => {0 => [[
            {0 => {1 => "ACME", 2 => "RoadRunner"}},
            [{0 => uuid, 1 => {2 => [digest]}}, {0 => 7, 1 => {4 => raw}}]
        ]]}
    })
    .ok()?;
    let comid = tag(506, Value::Bytes(bytes(&comid)));
    let (begin, end) = (tag(1, 100.into()), tag(1, 200.into()));
    let manifest = cbor!({0 => "corim", 1 => [comid], 4 => {0 => begin, 1 => end}});
    Some(tag(501, manifest.ok()?))
}

fn tag(tag: u64, value: Value) -> Value {
    Value::Tag(tag, Box::new(value))
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A list of bytes takes all that is written.
    let _ = ciborium::into_writer(value, &mut bytes);
    bytes
}

fn scopes() -> Vec<Vec<u8>> {
    texts(&["default", "default/key", "default/key/one", "strict_cpu"])
}

fn policies() -> Vec<Vec<u8>> {
    texts(&[
        "package policy\n\ndefault allow := false\n\nallow if {\n  input.submods.cpu0[\"ear.status\"] == \"affirming\"\n}\n",
        "package policy\n\nimport rego.v1\n\ndefault executables := 33\n\nexecutables := 3 if {\n  input.snp.measurement in data.reference.measurement\n}\n",
    ])
}
