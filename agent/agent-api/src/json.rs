//! The JSON form of requests that a policy reads.
//!
//! Policies written for Kata must mean the same here, so this is Kata's form, not protobuf's
//! canonical JSON: field names as in the `.proto` file (`type` becomes `type_`), every field
//! present, an absent message `null`, an enum its number, bytes an array of numbers.

use protobuf::{EnumFull, EnumOrUnknown, MessageField};
use serde::{Serialize, Serializer};

/// An enum is its number, also when the number has no name.
pub(crate) fn enumeration<E: EnumFull, S: Serializer>(
    value: &EnumOrUnknown<E>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_i32(value.value())
}

/// An absent message is `null`.
pub(crate) fn message<M: Serialize, S: Serializer>(
    value: &MessageField<M>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value.as_ref() {
        Some(message) => message.serialize(serializer),
        None => serializer.serialize_unit(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::agent::{ExecProcessRequest, FSGroup, Storage, StringUser, UpdateInterfaceRequest};
    use crate::oci::{Mount, Process, Spec};
    use crate::types::FSGroupChangePolicy;

    #[test]
    fn absent_messages_are_null_and_present_ones_are_objects() {
        let mut request = ExecProcessRequest::new();
        request.string_user = Some(StringUser {
            uid: "0".into(),
            ..Default::default()
        })
        .into();
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(
            json["string_user"],
            json!({"uid": "0", "gid": "", "additionalGids": []})
        );
        assert_eq!(json["process"], json!(null));
        assert_eq!(json["stdin_port"], json!(0));
    }

    #[test]
    fn oci_names_keep_their_case_and_rust_keywords_get_an_underscore() {
        let mut spec = Spec::new();
        spec.Process = Some(Process {
            Args: vec!["sh".into()],
            ..Default::default()
        })
        .into();
        spec.Mounts.push(Mount {
            type_: "proc".into(),
            ..Default::default()
        });
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(json["Process"]["Args"], json!(["sh"]));
        assert_eq!(json["Mounts"][0]["type_"], json!("proc"));
        assert_eq!(json["Linux"], json!(null));
    }

    #[test]
    fn enums_are_numbers() {
        let group = FSGroup {
            group_change_policy: FSGroupChangePolicy::OnRootMismatch.into(),
            ..Default::default()
        };
        let storage = Storage {
            fs_group: Some(group).into(),
            ..Default::default()
        };
        let json = serde_json::to_value(&storage).unwrap();
        assert_eq!(
            json["fs_group"],
            json!({"group_id": 0, "group_change_policy": 1})
        );
        let empty = serde_json::to_value(UpdateInterfaceRequest::new()).unwrap();
        assert_eq!(empty, json!({"interface": null}));
    }
}
