//! A registry on loopback that counts what it is asked for, and an image of one layer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use image_rs::{Digest, Reference};
use tokio::net::TcpListener;

/// The running registry; it ends with the test's runtime.
#[derive(Clone)]
pub struct Registry {
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

/// An image.
pub struct Image {
    files: HashMap<String, (String, Bytes)>,
    pub config: Digest,
    pub layer: Digest,
    pub layer_bytes: Vec<u8>,
    /// What `/marker` in it holds.
    pub marker: Vec<u8>,
}

impl Image {
    pub fn new(marker: &[u8]) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(marker.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "marker", marker).unwrap();
        let layer_bytes = tar.into_inner().unwrap();
        let layer = Digest::of(&layer_bytes);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
        });
        let config_bytes = config.to_string().into_bytes();
        let config = Digest::of(&config_bytes);
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.to_string(), "size": config_bytes.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.to_string(), "size": layer_bytes.len(),
            }],
        });
        let octets = || "application/octet-stream".to_owned();
        let files = HashMap::from([
            (
                "/v2/team/app/manifests/v1".to_owned(),
                (manifest_type.to_owned(), manifest.to_string().into()),
            ),
            (
                format!("/v2/team/app/blobs/{config}"),
                (octets(), config_bytes.into()),
            ),
            (
                format!("/v2/team/app/blobs/{layer}"),
                (octets(), layer_bytes.clone().into()),
            ),
        ]);
        Self {
            files,
            config,
            layer,
            layer_bytes,
            marker: marker.to_owned(),
        }
    }
}

impl Registry {
    pub async fn with(image: &Image) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let registry = Self { port, log };
        let (this, files) = (registry.clone(), Arc::new(image.files.clone()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (this, files) = (this.clone(), files.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let answer = this.answer(&request, &files);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        registry
    }

    pub fn image(&self) -> Reference {
        let name = format!("127.0.0.1:{}/team/app:v1", self.port);
        name.parse().unwrap()
    }

    /// The paths that it was asked for since it was asked that last.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer<B>(
        &self,
        request: &Request<B>,
        files: &HashMap<String, (String, Bytes)>,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let found = files.get(&path).cloned();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(path);
        let Some((media_type, bytes)) = found else {
            let missing = Response::builder().status(404);
            return missing.body(Full::default()).unwrap();
        };
        let range = request.headers().get("range");
        let from = range.and_then(|range| {
            let range = range.to_str().ok()?.strip_prefix("bytes=")?;
            range.strip_suffix('-')?.parse::<usize>().ok()
        });
        let answer = Response::builder().header("content-type", media_type);
        match from {
            None => answer.body(Full::new(bytes)).unwrap(),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                let answer = answer.status(206).header("content-range", range);
                answer.body(Full::new(bytes.slice(from..))).unwrap()
            }
        }
    }
}
