//! G2: a content is made, and some time after that the driver is called. For drivers whose snapshotter does not mark its contents;
//! they are named in the webhook's configuration.

use api::gate::{Gate, GateRequest};

use super::{Spared, group, of_content};
use crate::{
    ours::Ours,
    review::{Operation, Request},
};

pub(crate) fn request(request: &Request, ours: &Ours) -> Result<GateRequest, Spared> {
    let group = group(request, Operation::Create, ["volumesnapshotcontents", "volumegroupsnapshotcontents"])?;
    of_content(Gate::Content, group, request, ours)
}
