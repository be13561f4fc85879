//! As much of HTTP as it takes to send a file and to receive one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Nothing may stand still for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends the file to everyone who asks, until the test ends.
pub(crate) fn serve(listener: TcpListener, file: &Path) {
    let file = file.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // Whoever asked finds out whether all has come.
            let _ = answer(stream, &file);
        }
    });
}

fn answer(stream: TcpStream, file: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    skip_head(&mut BufReader::new(&stream))?;
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    write!(&stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
    io::copy(&mut file, &mut &stream)?;
    Ok(())
}

/// Asks for `path` and gives what comes to `sink`.
pub(crate) fn fetch(address: impl ToSocketAddrs, path: &str, sink: &mut impl Write) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let status = skip_head(&mut reader).unwrap();
    assert!(status.contains(" 200 "), "{status}");
    io::copy(&mut reader, sink).unwrap();
}

/// The first line.
fn skip_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    Ok(first)
}

/// Compares all that is written to it with a file.
pub(crate) struct Same {
    file: BufReader<File>,
    pub(crate) bytes: u64,
}

impl Same {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: BufReader::with_capacity(256 << 10, File::open(file).unwrap()), bytes: 0 }
    }

    /// Asserts that it was all of the file.
    pub(crate) fn assert_all(mut self) {
        assert_eq!(self.file.read(&mut [0]).unwrap(), 0, "only {} bytes came", self.bytes);
    }
}

impl Write for Same {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut expected = vec![0; bytes.len()];
        self.file.read_exact(&mut expected)?;
        assert!(expected == bytes, "wrong content behind byte {}", self.bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
