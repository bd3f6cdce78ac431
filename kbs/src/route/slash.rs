//! One slash too many: guest-components' `trustee-attester` asks for `resource//a/b/c` where it was given
//! `a/b/c`. No segment of a resource is empty, so this has one meaning.

use http::{Request, Uri, uri::PathAndQuery};
use kbs_protocol::PREFIX;

const RESOURCE: &str = "/resource/";

/// The request with the path that it means.
pub(crate) fn single<B>(mut request: Request<B>) -> Request<B> {
    if let Some(uri) = meant(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

fn meant(uri: &Uri) -> Option<Uri> {
    let rest = uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    let name = rest.strip_prefix(RESOURCE)?.strip_prefix('/')?;
    let path = PathAndQuery::try_from(format!("{PREFIX}{RESOURCE}{name}")).ok()?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_one_slash_before_its_name_and_nothing_else_changes() {
        let path = |uri: &str| {
            let request = Request::get(uri).body(()).unwrap();
            single(request).uri().to_string()
        };
        assert_eq!(
            path("/kbs/v0/resource//a/b/c?x=//"),
            "/kbs/v0/resource/a/b/c?x=//"
        );
        assert_eq!(
            path("http://h:1/kbs/v0/resource//a/b/c"),
            "http://h:1/kbs/v0/resource/a/b/c"
        );
        for same in [
            "/kbs/v0/resource/a/b/c",
            "/kbs/v0/resource/a//b/c",
            "/kbs/v0/reference-value/rvps:///a",
            "/resource//a/b/c",
            "/",
        ] {
            assert_eq!(path(same), same);
        }
        assert_eq!(path("/kbs/v0/resource///a/b"), "/kbs/v0/resource//a/b");
    }
}
