//! What the owner asks about secrets: set, list, history, deletion, and the keys that they are under.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use kbs_protocol::ErrorKind;

use super::{Answer, Body, administration, guest::resource_path, now, query, storage};
use crate::{
    admin::right,
    auth::Admin,
    broker::Broker,
    record::{Kind, Outcome},
    refusal::Refusal,
    store::{KeyStatus, Metadata, Page},
};

pub(super) async fn set_resource(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WriteResource>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    mut body: Body,
) -> Result<(), Refusal> {
    let path = resource_path(&repository, &kind, &tag)?;
    let secret = body.take();
    let entry = administration(Kind::Resource, Outcome::Set, &admin, path.to_string());
    broker
        .store
        .set_resource(&path, &secret, now(), &entry)
        .await
        .map_err(storage)?;
    tracing::info!(role = admin.role, %path, "resource set");
    Ok(())
}

pub(super) async fn delete_resource(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::DeleteResource>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
) -> Result<(), Refusal> {
    let path = resource_path(&repository, &kind, &tag)?;
    let entry = administration(Kind::Resource, Outcome::Deleted, &admin, path.to_string());
    let deleted = broker.store.delete_resource(&path, now(), &entry).await;
    if !deleted.map_err(storage)? {
        return Err(Refusal::new(
            ErrorKind::ResourceNotFound,
            "there is no such resource",
        ));
    }
    tracing::info!(role = admin.role, %path, "resource deleted");
    Ok(())
}

pub(super) async fn list_resources(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::ReadMetadata>,
    page: Result<Query<Page>, QueryRejection>,
) -> Answer<Vec<Metadata>> {
    let page = query(page)?;
    let may_see = |path: &_| admin.may_with(path);
    let list = broker.store.list_resources(&page, may_see).await;
    list.map(Json).map_err(storage)
}

pub(super) async fn resource_history(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadMetadata>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
) -> Answer<Vec<Metadata>> {
    let path = resource_path(&repository, &kind, &tag)?;
    let versions = broker.store.resource_history(&path).await;
    versions.map(Json).map_err(storage)
}

pub(super) async fn key_status(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadKey>,
) -> Answer<KeyStatus> {
    broker.store.key_status().await.map(Json).map_err(storage)
}
