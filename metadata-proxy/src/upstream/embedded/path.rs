//! The path of a request as nova sees it: decoded once, then normalized.

use std::borrow::Cow;

/// No path of nova's goes deeper (`/ec2/latest/meta-data/public-keys/0/openssh-key`).
const DEEPEST: usize = 6;

/// The path of a target in origin form, without query, percent-decoded; none if it is not UTF-8.
///
/// What follows a `%` that starts no escape stays as it is.
pub(super) fn decoded(target: &str) -> Option<Cow<'_, str>> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// The segments of a decoded path: no empty one, no `.`, no `..`.
pub(super) struct Segments<'a> {
    kept: [&'a str; DEEPEST],
    len: usize,
}

impl<'a> Segments<'a> {
    /// Normalizes `path`; none if it is deeper than anything that is served.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        let mut segments = Self {
            kept: [""; DEEPEST],
            len: 0,
        };
        // POSIX lets exactly two slashes at the front mean something of their own, so Python's
        // normpath keeps them; nova then finds an empty first segment and answers as for `/`.
        if path.starts_with("//") && !path.starts_with("///") {
            return Some(segments);
        }
        for segment in path.split('/') {
            match segment {
                "" | "." => {}
                ".." => segments.len = segments.len.saturating_sub(1),
                _ => {
                    if let Some(place) = segments.kept.get_mut(segments.len) {
                        *place = segment;
                    }
                    segments.len += 1;
                }
            }
        }
        (segments.len <= DEEPEST).then_some(segments)
    }

    pub(super) fn as_slice(&self) -> &[&'a str] {
        &self.kept[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(target: &str) -> Option<Vec<String>> {
        let path = decoded(target)?;
        let segments = Segments::of(&path)?;
        Some(
            segments
                .as_slice()
                .iter()
                .map(ToString::to_string)
                .collect(),
        )
    }

    #[test]
    fn paths_are_normalized_as_nova_does() {
        for (target, expected) in [
            ("/", ""),
            ("", ""),
            ("//", ""),
            ("/../..", ""),
            ("/openstack/", "openstack"),
            ("//openstack", ""),
            ("///openstack", "openstack"),
            ("/latest/../openstack", "openstack"),
            (
                "/openstack/./latest//user_data",
                "openstack latest user_data",
            ),
            ("/a/b/c/d/e/f/g/../../../../../../../x", "x"),
            ("/%6fpenstack", "openstack"),
            ("/latest%2Fmeta-data", "latest meta-data"),
            ("/latest/%2e%2E/openstack", "openstack"),
            ("/a%252e", "a%2e"),
            ("/a%zz%", "a%zz%"),
            ("/a?b=/c", "a"),
            ("/a;b", "a;b"),
        ] {
            assert_eq!(
                segments(target).map(|s| s.join(" ")).as_deref(),
                Some(expected),
                "{target}"
            );
        }
    }

    #[test]
    fn what_is_not_utf8_or_too_deep_has_no_segments() {
        assert_eq!(segments("/a%ffb"), None);
        assert_eq!(segments("/a/b/c/d/e/f/g"), None);
    }
}
