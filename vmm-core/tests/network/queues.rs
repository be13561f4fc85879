//! Large frames and two queues.

use std::net::TcpListener;

use sparkler::virtio::net::Net;

use crate::amount;
use crate::bulk::{Data, Iperf};
use crate::host::{GUEST, HOST, TAP, enter_namespace, set_up_tap};
use crate::http::{Same, fetch, serve};
use crate::machine::Machine;

const SCRIPT: &str = r#"
address
echo "mtu: $(cat /sys/class/net/eth0/mtu)"
echo "queues: $(ls -d /sys/class/net/eth0/queues/[rt]x-* | wc -l)"
ping -q -M do -s 8972 -i 0.2 -c 5 $HOST | grep transmitted
iperf3 --client $HOST --parallel 4 --time $SECONDS --format m --bidir >/run/iperf ||
    { cat /run/iperf; exit 1; }
fetch $HOST
ethtool -L eth0 combined 1
fetch $HOST
ethtool -L eth0 combined 2
fetch $HOST
serve
wait_for_test served
ip link set eth0 mtu 1500
fetch $HOST
echo "used: $(sed -n 's/.*virtio[0-9]*-input.*/&/p' /proc/interrupts | wc -l)"
"#;

#[test]
#[ignore = "needs the lab"]
fn two_queues_and_frames_of_9000_bytes() {
    enter_namespace();
    let net = Net::tap(TAP).unwrap().queues(2).unwrap().mtu(9000).unwrap();
    set_up_tap(9000);
    let _iperf = Iperf::start();
    let data = Data::new(amount(2, 256));
    serve(TcpListener::bind((HOST, 8000)).unwrap(), &data.path);

    let script = format!("SECONDS={}\nHOST={HOST}\n{SCRIPT}", amount(1, 10));
    let mut machine = Machine::start(net, &script, |machine| machine.vcpus(2).disk(data.disk()));
    machine.meet("served");
    let mut same = Same::new(&data.path);
    fetch((GUEST, 8001), "/cgi-bin/data", &mut same);
    same.assert_all();
    machine.go_on();
    let text = machine.end();

    for line in ["mtu: 9000", "queues: 4", "5 packets transmitted, 5 received, 0% packet loss"] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    assert_eq!(text.matches("fetched from").count(), 4, "{text}");
}
