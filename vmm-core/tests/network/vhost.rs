//! A network whose frames the host's kernel moves.

use std::net::TcpListener;

use sparkler::virtio::net::{Net, NetStats};

use crate::amount;
use crate::bulk::{Data, Iperf};
use crate::host::{GUEST, HOST, TAP, enter_namespace, load, set_up_tap};
use crate::http::{Same, fetch, serve};
use crate::machine::Machine;

const SCRIPT: &str = r#"
address
ping -f -q -c 500 $HOST | grep transmitted
for way in "" --reverse; do
    iperf3 --client $HOST --parallel 4 --time $SECONDS $way >/run/iperf || { cat /run/iperf; exit 1; }
    # The server may not be done yet.
    sleep 1
done
fetch $HOST
# A driver anew.
card=$(basename $(readlink -f /sys/class/net/eth0/device))
echo $card >/sys/bus/virtio/drivers/virtio_net/unbind
echo $card >/sys/bus/virtio/drivers/virtio_net/bind
address
fetch $HOST
serve
wait_for_test served
"#;

#[test]
#[ignore = "needs the lab"]
fn everything_passes_by_vhost_across_pauses_and_drivers() {
    enter_namespace();
    load("vhost_net", "/dev/vhost-net");
    let net = Net::tap(TAP).unwrap().vhost().unwrap();
    let handle = net.handle();
    set_up_tap(1500);
    let _iperf = Iperf::start();
    let data = Data::new(amount(4, 1024));
    serve(TcpListener::bind((HOST, 8000)).unwrap(), &data.path);

    let script = format!("SECONDS={}\nHOST={HOST}\n{SCRIPT}", amount(1, 10));
    let mut machine = Machine::start(net, &script, |machine| machine.disk(data.disk()));
    machine.hear("500 packets transmitted, 500 received, 0% packet loss");
    // In the middle of streams.
    let pauses = machine.running().handle();
    for _ in 0..20 {
        pauses.pause().unwrap();
        pauses.resume().unwrap();
    }
    machine.meet("served");
    let mut same = Same::new(&data.path);
    fetch((GUEST, 8001), "/cgi-bin/data", &mut same);
    same.assert_all();
    machine.go_on();
    let text = machine.end();

    assert_eq!(text.matches("fetched from").count(), 2, "{text}");
    assert_eq!(handle.stats(), NetStats::default(), "it was not the kernel that moved the frames");
}
