//! The heads of a blob's answers: whether what follows is what was asked for.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, StatusCode};

use super::RegistryError;

/// How many bytes of an answer come before the one that is wanted, which stands at `position` of `size`.
pub(super) fn skipped(
    what: &str,
    status: StatusCode,
    headers: &HeaderMap,
    position: u64,
    size: u64,
) -> Result<u64, RegistryError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if status != StatusCode::PARTIAL_CONTENT {
        // A server that does not know ranges begins anew.
        let length = text(CONTENT_LENGTH).and_then(|text| text.parse().ok());
        return match length {
            Some(found) if found != size => Err(RegistryError::Length {
                what: what.to_owned(),
                expected: size,
                found,
            }),
            _ => Ok(position),
        };
    }
    let shown = text(CONTENT_RANGE).unwrap_or("no Content-Range");
    let range = parse(shown);
    match range {
        Some((first, last, whole))
            if first == position
                && last >= first
                && last < size
                && whole.is_none_or(|whole| whole == size) =>
        {
            Ok(0)
        }
        _ => Err(RegistryError::Range {
            what: what.to_owned(),
            position,
            size,
            found: shown.chars().take(80).collect(),
        }),
    }
}

/// `bytes first-last/whole`, the whole perhaps unknown.
fn parse(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, whole) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let whole = match whole {
        "*" => None,
        whole => Some(whole.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, whole))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::HeaderName;

    use super::*;

    fn of(status: u16, header: Option<(HeaderName, &'static str)>) -> Result<u64, RegistryError> {
        let headers = header
            .into_iter()
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        skipped("blob", status, &headers, 100, 300)
    }

    #[test]
    fn only_the_range_that_was_asked_for_is_taken() {
        for good in ["bytes 100-299/300", "bytes 100-299/*", "bytes 100-199/300"] {
            assert_eq!(of(206, Some((CONTENT_RANGE, good))).unwrap(), 0, "{good}");
        }
        for bad in [
            "bytes 0-299/300",
            "bytes 101-299/300",
            "bytes 100-300/301",
            "bytes 100-300/300",
            "bytes 100-99/300",
            "bytes 100-299/400",
            "bytes */300",
            "items 100-299/300",
            "bytes 100-99999999999999999999999/300",
            "",
        ] {
            let error = of(206, Some((CONTENT_RANGE, bad)));
            assert!(matches!(error, Err(RegistryError::Range { .. })), "{bad}");
        }
        assert!(matches!(of(206, None), Err(RegistryError::Range { .. })));
    }

    #[test]
    fn a_whole_answer_is_skipped_to_the_place_and_must_have_the_size() {
        assert_eq!(of(200, None).unwrap(), 100);
        assert_eq!(of(200, Some((CONTENT_LENGTH, "300"))).unwrap(), 100);
        let error = of(200, Some((CONTENT_LENGTH, "301")));
        assert!(matches!(
            error,
            Err(RegistryError::Length { found: 301, .. })
        ));
    }
}
