//! G3: the snapshotter puts its mark on a content, and calls the driver as soon as that is stored. The last moment, and the best
//! one: a slow answer delays the cut, and nothing else (external-snapshotter, createSnapshotWrapper).

use api::gate::{Gate, GateRequest};

use super::{Spared, group, of_content};
use crate::{
    ours::Ours,
    review::{Operation, Request},
};

pub(crate) fn request(request: &Request, ours: &Ours) -> Result<GateRequest, Spared> {
    let group = group(request, Operation::Update, ["volumesnapshotcontents", "volumegroupsnapshotcontents"])?;
    if !request.adds(group.mark()) {
        return Err("no cut begins");
    }
    of_content(Gate::Cut, group, request, ours)
}
