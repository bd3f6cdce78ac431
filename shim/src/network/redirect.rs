//! Every frame that comes in by one interface goes out by another: an ingress qdisc with one u32 filter
//! that matches everything, and the mirred action. `matchall` would say it in fewer words, but not every
//! kernel has it; u32 is in all that Kata runs on.

use netlink::Socket;
use netlink::packet::RouteNetlinkMessage;
use netlink::packet::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use nix::libc;

use super::NetworkError;

/// The priority of our filters: by it they are known as ours, after whatever end.
const PRIORITY: u16 = 0xc105;
const INGRESS: &str = "ingress";
const CLSACT: &str = "clsact";
/// The handle of an ingress qdisc, `ffff:`.
const HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

/// Sends what comes in by `from`, which is called `name`, out by `to`. What a VM before has left on it is
/// taken away first.
///
/// # Errors
/// [`NetworkError`] names the interface.
pub(super) fn tie(socket: &mut Socket, name: &str, from: u32, to: u32) -> Result<(), NetworkError> {
    untie(socket, name, from)?;
    let failed = |source: netlink::Error| NetworkError::Interface {
        interface: name.to_owned(),
        advice: advice(&source),
        source,
    };
    let flags = CREATE | EXCLUSIVE;
    let qdisc = RouteNetlinkMessage::NewQueueDiscipline(qdisc(from));
    socket
        .act("add an ingress qdisc", qdisc, flags)
        .map_err(failed)?;
    let filter = RouteNetlinkMessage::NewTrafficFilter(filter(from, to));
    socket
        .act("add a filter with u32 and mirred", filter, flags)
        .map_err(failed)
}

fn advice(error: &netlink::Error) -> &'static str {
    if error.is(libc::ENOENT) || error.is(libc::EOPNOTSUPP) {
        "the kernel lacks traffic control: load its modules sch_ingress, cls_u32 and act_mirred"
    } else {
        "tie it to its tap device"
    }
}

/// Takes away our qdisc, with its filter. An interface without one is left as it is.
///
/// # Errors
/// [`NetworkError::Foreign`] where there is somebody else's.
pub(super) fn untie(socket: &mut Socket, name: &str, index: u32) -> Result<(), NetworkError> {
    let Some(kind) = ingress_qdisc(socket, index)? else {
        return Ok(());
    };
    if kind != INGRESS || !is_ours(socket, index)? {
        return Err(NetworkError::Foreign {
            interface: name.to_owned(),
            kind,
        });
    }
    let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(index));
    socket
        .act("remove the ingress qdisc", message, 0)
        .map_err(|source| NetworkError::Interface {
            interface: name.to_owned(),
            advice: "untie it from its tap device",
            source,
        })
}

/// The kind of the qdisc that an interface's incoming frames go through.
fn ingress_qdisc(socket: &mut Socket, index: u32) -> Result<Option<String>, NetworkError> {
    let wanted = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(signed(index)));
    let qdiscs = socket.list("list the qdiscs", &wanted)?;
    Ok(qdiscs.into_iter().find_map(|qdisc| match qdisc {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) if qdisc.header.index == signed(index) => {
            kind_of(qdisc.attributes).filter(|kind| kind == INGRESS || kind == CLSACT)
        }
        _ => None,
    }))
}

fn kind_of(attributes: Vec<TcAttribute>) -> Option<String> {
    attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind),
            _ => None,
        })
}

/// Whether every filter of an interface's ingress qdisc is ours. One without filters does nothing: it is
/// what is left of a shim that was killed between two steps.
fn is_ours(socket: &mut Socket, index: u32) -> Result<bool, NetworkError> {
    let mut message = TcMessage::with_index(signed(index));
    message.header.parent = HANDLE;
    let wanted = RouteNetlinkMessage::GetTrafficFilter(message);
    let filters = socket.list("list the filters", &wanted)?;
    Ok(filters.into_iter().all(|filter| match filter {
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            filter.header.info >> 16 == u32::from(PRIORITY)
        }
        _ => true,
    }))
}

fn qdisc(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(signed(index));
    message.header.handle = HANDLE;
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind(INGRESS.to_owned())];
    message
}

fn filter(from: u32, to: u32) -> TcMessage {
    let mut message = TcMessage::with_index(signed(from));
    message.header.parent = HANDLE;
    let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(every_protocol);
    // One key whose mask is zero.
    let mut everything = TcU32Selector::default();
    everything.flags = TcU32SelectorFlags::Terminal;
    everything.nkeys = 1;
    everything.keys = vec![TcU32Key::default()];
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything)),
            TcOption::U32(TcFilterU32Option::Action(vec![out_by(to)])),
        ]),
    ];
    message
}

fn out_by(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(options),
    ];
    action
}

/// Numbers of interfaces are positive for the kernel too.
fn signed(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(0)
}
