//! G1: somebody declares a snapshot. What will become of it is told as warnings; nothing is prepared or held yet.

use api::gate::{self, Gate, GateRequest, Group};

use super::{Spared, asked, group, is_wanted, owners};
use crate::{
    ours::Ours,
    review::{Operation, Request},
};

pub(crate) fn request(request: &Request, ours: &Ours) -> Result<GateRequest, Spared> {
    let group = group(request, Operation::Create, ["volumesnapshots", "volumegroupsnapshots"])?;
    is_wanted(request, request.namespace(), ours)?;
    if owners(&request.object).any(|owner| owner["kind"] == gate::GROUP_KIND) {
        return Err("cut with its group");
    }
    let asked = asked(Gate::Preflight, group, request);
    match group {
        Group::Single => {
            let claim =
                request.text("/spec/source/persistentVolumeClaimName").ok_or("made from a copy that is there")?;
            let class = request.text("/spec/volumeSnapshotClassName").map(str::to_owned);
            Ok(GateRequest { claims: vec![claim.to_owned()], class, ..asked })
        }
        Group::Group => {
            let selector = request.object.pointer("/spec/source/selector").filter(|selector| selector.is_object());
            let selector = selector.ok_or("made from a copy that is there")?;
            let class = request.text("/spec/volumeGroupSnapshotClassName").map(str::to_owned);
            Ok(GateRequest { selector: Some(selector.clone()), class, ..asked })
        }
    }
}
