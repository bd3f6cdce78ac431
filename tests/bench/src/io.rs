//! How fast bytes pass through a process of a guest: through streams of their own, and by the calls with
//! which Kata's shim moves them, 4 KiB at a time. Both go through the same program in the same guest, in
//! turns, over the same vsock device.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::agent::{CopyFileRequest, ReadStreamRequest, WriteStreamRequest};
use agent_api::agent_ttrpc::AgentServiceClient;
use agent_api::{StreamKind, oci, ports};
use anyhow::{Context, Result, ensure};
use hypervisor::{Vm, VmSpec};
use shim::guest::{Guest, NewContainer, ProcessId};
use support::image::BUSYBOX;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;
use tokio::time::timeout;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context as Call;

use crate::figure::{Figure, median};

/// Longest wait for the guest under emulation on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// What Kata's shim reads at once.
const PIECE: usize = 4096;
/// Bytes of one measurement by calls, and through streams.
const BY_CALLS: usize = 1 << 20;
const THROUGH_STREAMS: usize = 32 << 20;
/// Bytes of a file that one call brings into the guest.
const FILE_PIECE: usize = 1 << 20;
/// Where the agent takes files from the host.
const SHARED: &str = "/run/kata-containers/shared/containers";
const CONTAINER: &str = "io";
/// How much faster streams have to be.
const GOAL: f64 = 5.0;

/// A guest with one container, in which processes echo what they read.
struct Subject {
    vm: Vm,
    guest: Guest,
    calls: AgentServiceClient,
    _gone: watch::Sender<Option<agent_api::GuestError>>,
}

/// Measures both in turns, `rounds` times.
///
/// # Errors
/// When the guest does not come up, or bytes are lost.
pub async fn measure(image: &Path, rounds: u32) -> Result<Vec<Figure>> {
    let directory = tempfile::tempdir()?;
    let kernel = image.join(guest_image::image::VMLINUX);
    let mut spec = VmSpec::new("io", &kernel, directory.path());
    spec.initrd = Some(image.join(guest_image::image::INITRAMFS));
    spec.kernel_params = vec!["cloister.tee=none".to_owned()];
    let mut vm = Vm::boot(spec).await?;
    let mut incoming = vm.incoming().context("the VM has no host port")?;
    let ready = async {
        let stream = incoming.accept().await.context("the guest ended")??;
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).await?;
        Ok::<_, anyhow::Error>(stream)
    };
    let _events = timeout(BOOT_TIMEOUT, ready)
        .await
        .with_context(|| format!("the guest is not ready: {}", vm.console_tail()))??;
    let client = Client::new(Socket::new(vm.connect(ports::AGENT).await?));
    let (gone, watched) = watch::channel(None);
    let subject = Subject {
        guest: Guest::new(client.clone(), watched).with_ports(vm.connector()),
        calls: AgentServiceClient::new(client),
        vm,
        _gone: gone,
    };
    let measured = subject.measure(rounds).await;
    subject.vm.kill().await;
    measured
}

impl Subject {
    async fn measure(&self, rounds: u32) -> Result<Vec<Figure>> {
        self.guest
            .create_sandbox("io", "io", vec![], vec![])
            .await?;
        self.copy_busybox().await?;
        let spec = oci::Spec {
            Process: Some(process(&["/busybox", "sleep", "3600"])).into(),
            Root: Some(oci::Root {
                Path: format!("{SHARED}/{CONTAINER}/rootfs"),
                ..Default::default()
            })
            .into(),
            Mounts: vec![mount("proc", "/proc"), mount("tmpfs", "/dev")],
            ..Default::default()
        };
        let id = CONTAINER.to_owned();
        let storages = Vec::new();
        let new = NewContainer {
            id,
            storages,
            devices: Vec::new(),
            spec,
            sandbox_pidns: false,
            trace: None,
        };
        self.guest.create_container(new).await?;
        self.guest.start_container(CONTAINER).await?;
        let calls = self.echo("calls").await?;
        let streams = self.echo("streams").await?;
        let mut stdin = self.guest.stream(&streams, StreamKind::Stdin).await?;
        let mut stdout = self.guest.stream(&streams, StreamKind::Stdout).await?;
        let (mut by_calls, mut through_streams) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            by_calls.push(self.by_calls(&calls).await?);
            through_streams.push(through_streams_once(&mut stdin, &mut stdout).await?);
            eprintln!(
                "round {round} of {rounds}: by calls {:.2} MiB/s, through streams {:.1} MiB/s",
                by_calls[by_calls.len() - 1],
                through_streams[through_streams.len() - 1]
            );
        }
        let ratios: Vec<_> = through_streams
            .iter()
            .zip(&by_calls)
            .map(|(stream, call)| stream / call)
            .collect();
        Ok(vec![
            Figure::new("io.polling_mib_s", median(&by_calls), "MiB/s"),
            Figure::new("io.stream_mib_s", median(&through_streams), "MiB/s"),
            Figure::new("io.stream_over_polling", median(&ratios), "ratio").at_least(GOAL),
        ])
    }

    /// A process that writes what it reads.
    async fn echo(&self, name: &str) -> Result<ProcessId> {
        let id = ProcessId {
            container: CONTAINER.to_owned(),
            exec: name.to_owned(),
        };
        self.guest
            .exec_process(&id, process(&["/busybox", "cat"]))
            .await?;
        Ok(id)
    }

    async fn copy_busybox(&self) -> Result<()> {
        let program = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
        let mode = std::fs::metadata(BUSYBOX)?.permissions().mode();
        for (number, piece) in program.chunks(FILE_PIECE).enumerate() {
            let request = CopyFileRequest {
                path: format!("{SHARED}/{CONTAINER}/rootfs/busybox"),
                file_size: i64::try_from(program.len())?,
                file_mode: mode,
                dir_mode: 0o755,
                offset: i64::try_from(number * FILE_PIECE)?,
                data: piece.to_vec(),
                ..Default::default()
            };
            self.calls.copy_file(Call::default(), &request).await?;
        }
        Ok(())
    }

    /// MiB in a second by calls: each piece is written and read back.
    async fn by_calls(&self, id: &ProcessId) -> Result<f64> {
        let write = WriteStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            data: vec![7; PIECE],
            ..Default::default()
        };
        let read = ReadStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            len: u32::try_from(PIECE)?,
            ..Default::default()
        };
        let began = Instant::now();
        for _ in 0..BY_CALLS / PIECE {
            self.calls.write_stdin(Call::default(), &write).await?;
            let mut got = 0;
            while got < PIECE {
                let answer = self.calls.read_stdout(Call::default(), &read).await?;
                got += answer.data.len();
            }
            ensure!(got == PIECE, "{got} bytes came back");
        }
        Ok(rate(BY_CALLS, began.elapsed()))
    }
}

/// MiB in a second through streams, whose bytes must come back in order.
async fn through_streams_once(
    stdin: &mut (impl AsyncWriteExt + Unpin),
    stdout: &mut (impl AsyncReadExt + Unpin),
) -> Result<f64> {
    let sent: Vec<u8> = (0..THROUGH_STREAMS / 4)
        .map(|n| u32::try_from(n).unwrap_or_default())
        .flat_map(u32::to_le_bytes)
        .collect();
    let mut got = vec![0; sent.len()];
    let began = Instant::now();
    let (written, read) = tokio::join!(stdin.write_all(&sent), stdout.read_exact(&mut got));
    let took = began.elapsed();
    written?;
    read?;
    ensure!(got == sent, "the bytes that came back are others");
    Ok(rate(sent.len(), took))
}

fn rate(bytes: usize, took: Duration) -> f64 {
    // Exact: far below 2^32.
    let mib = f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0;
    mib / took.as_secs_f64()
}

fn process(args: &[&str]) -> oci::Process {
    oci::Process {
        Args: args.iter().map(|word| (*word).to_owned()).collect(),
        Cwd: "/".to_owned(),
        ..Default::default()
    }
}

fn mount(kind: &str, destination: &str) -> oci::Mount {
    oci::Mount {
        destination: destination.to_owned(),
        source: kind.to_owned(),
        type_: kind.to_owned(),
        ..Default::default()
    }
}
