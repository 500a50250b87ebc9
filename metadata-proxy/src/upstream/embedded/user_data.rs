//! The user data of an instance, which the file gives in one of three forms.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;

use super::{
    document::Node,
    fields::{self, Fields, Report},
    problem::Place,
    tenants::ReadFile,
};

/// Most bytes of user data; nova takes 64 KiB.
const MAX_BYTES: usize = 1 << 20;

/// Takes the user data of the instance at `place`.
pub(super) fn take(
    fields: &mut Fields<'_>,
    place: Place,
    read_file: &mut ReadFile<'_>,
    report: &mut Report,
) -> Option<Bytes> {
    let text = fields.text("user_data", report);
    let file = fields.node("user_data_file", report);
    let base64 = fields.node("user_data_base64", report);
    let data = match (text, file, base64) {
        (Some(text), None, None) => Bytes::copy_from_slice(text.as_bytes()),
        (None, Some(node), None) => of_file(node, read_file, report)?,
        (None, None, Some(node)) => of_base64(node, report)?,
        (None, None, None) => return None,
        _ => {
            report.add(
                place,
                "user data is given more than once; \
                 keep one of `user_data`, `user_data_file`, `user_data_base64`",
            );
            return None;
        }
    };
    if data.len() > MAX_BYTES {
        let len = data.len();
        report.add(
            place,
            format!("user data may have {MAX_BYTES} bytes, and has {len}"),
        );
        return None;
    }
    Some(data)
}

fn of_file(node: &Node, read_file: &mut ReadFile<'_>, report: &mut Report) -> Option<Bytes> {
    let name = fields::line(node, "`user_data_file`", report)?;
    match read_file(name) {
        Ok(data) => Some(data),
        Err(error) => {
            report.add(
                node.place,
                format!(
                    "cannot read `{name}`: {error}; \
                     a relative path counts from the directory of this file"
                ),
            );
            None
        }
    }
}

fn of_base64(node: &Node, report: &mut Report) -> Option<Bytes> {
    let text = fields::text(node, "`user_data_base64`", report)?;
    let packed: String = text.split_ascii_whitespace().collect();
    match BASE64.decode(packed) {
        Ok(data) => Some(data.into()),
        Err(error) => {
            report.add(
                node.place,
                format!("`user_data_base64` must be base64: {error}"),
            );
            None
        }
    }
}
