#!/usr/bin/perl
# A client from the founding document alone: plain sockets, HTTP/1.0 without Host, no pings, every reply read to the end
# of the connection. It has one slot and ends at the first 503.
#
#   client.pl HOST PORT SESSION [WORKER]

use strict;
use warnings;
use File::Basename qw(dirname);
use File::Path qw(mkpath rmtree);
use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX qw(uname);

@ARGV == 3 || @ARGV == 4 or die "usage: client.pl HOST PORT SESSION [WORKER]\n";
my ($host, $port, $session, $worker) = @ARGV;
my $home = tempdir("foreign-XXXXXX", TMPDIR => 1, CLEANUP => 1);

my ($status, $config) = request("GET", "config");
$status == 200 or die "config: $status\n";
fetch_worker() if defined $worker;
while (1) {
    my ($status, $body) = request("GET", "task", defined $worker ? (worker => $worker) : ());
    exit 0 if $status == 503;
    $status == 200 or die "task: $status\n";
    work(read_task($body));
}

# Status and body of the reply to one request, on a connection of its own.
sub request {
    my ($method, $path, @arguments) = @_;
    my $content = $method eq "POST" ? pop @arguments : undef;
    my @pairs = ("sessionID", $session, @arguments);
    my @query;
    while (my ($name, $value) = splice(@pairs, 0, 2)) {
        $value =~ s/([^A-Za-z0-9_.~-])/sprintf("%%%02X", ord $1)/ge;
        push @query, "$name=$value";
    }
    my $socket = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Proto => "tcp")
        or die "$host:$port: $@\n";
    binmode $socket;
    my $head = "$method /$path?" . join("&", @query) . " HTTP/1.0\r\n";
    $head .= "Content-Length: " . length($content) . "\r\n" if defined $content;
    print $socket $head, "\r\n", defined $content ? $content : "";
    $socket->flush;
    my $reply = do { local $/; <$socket> };
    close $socket;
    defined $reply && $reply =~ m{^HTTP/1\.[01] (\d\d\d)[^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n(.*)$}s
        or die "$path: no reply that could be read\n";
    return ($1, $2);
}

# The worker is found by its name, wherever it stands in a command line.
sub fetch_worker {
    my ($system, undef, undef, undef, $machine) = uname();
    my $platform = lc "$system-$machine";
    my ($status, $binary) = request("GET", "worker", name => $worker, platform => $platform);
    $status == 200 or die "worker for $platform: $status\n";
    mkdir "$home/bin" or die "$home/bin: $!\n";
    spill("$home/bin/$worker", $binary);
    chmod 0700, "$home/bin/$worker";
    $ENV{PATH} = "$home/bin:$ENV{PATH}";
}

# The task as a hash: its keys, and lists of hashes, one for each section.
sub read_task {
    my ($body) = @_;
    my %task = (Input => [], Result => []);
    my $section = \%task;
    while ($body =~ /\G([^\n]*)(?:\n|\z)/gc) {
        my $line = $1;
        $line =~ s/\s+$//;
        if ($line =~ /^\[(Input|Result)\]$/) {
            $section = {};
            push @{$task{$1}}, $section;
        }
        elsif ($line eq "--begin content--") {
            # the line feed before the closing line is not content; there is none before it when there is no content
            $body =~ /\G(?:(.*?)\n)??--end content--\r?(?:\n|\z)/gcs or die "task: content without end\n";
            $section->{Content} = defined $1 ? $1 : "";
        }
        elsif ($line =~ /^\s*(\w+)\s*=\s*(.*)$/) {
            $section->{$1} = $2;
        }
        last if pos($body) >= length $body;
    }
    return \%task;
}

# Run the command of one task in a folder of its own and post what comes out.
sub work {
    my ($task) = @_;
    my $folder = "$home/$task->{Ticket}";
    my ($stdin, $stdout) = ("$folder.stdin", "$folder.stdout");
    mkdir $folder or die "$folder: $!\n";
    spill($stdin, "");
    for my $input (@{$task->{Input}}) {
        my $path = $input->{File} eq "stdin" ? $stdin : "$folder/$input->{File}";
        mkpath(dirname($path));
        spill($path, $input->{Content});
    }
    my $failed = run($task, $folder, $stdin, $stdout);
    my $body = "";
    for my $result (@{$task->{Result}}) {
        my $path = $result->{File} eq "stdout" ? $stdout : "$folder/$result->{File}";
        $failed ||= !-f $path;
        last if $failed;
        $body .= "[Result]\nName=$result->{Name}\n";
        $body .= "--begin content--\n" . slurp($path) . "\n--end content--\n";
    }
    my @ticket = (ticket => $task->{Ticket});
    my ($status) = $failed ? request("GET", "failed", @ticket) : request("POST", "complete", @ticket, $body);
    $status == 200 or die(($failed ? "failed" : "complete") . ": $status\n");
    rmtree($folder);
    unlink $stdin, $stdout;
}

# The worker's wait status: 0 if all went well. No shell; its process group dies at the timeout.
sub run {
    my ($task, $folder, $stdin, $stdout) = @_;
    my @words = split_words($task->{CommandLine});
    my $pid = fork;
    defined $pid or die "fork: $!\n";
    if (!$pid) {
        setpgrp(0, 0);
        chdir $folder && open(STDIN, "<", $stdin) && open(STDOUT, ">", $stdout)
            && exec { $words[0] } @words;
        warn "$words[0]: $!\n";
        POSIX::_exit(127);
    }
    local $SIG{ALRM} = sub { kill "KILL", -$pid };
    alarm $task->{Timeout};
    1 while waitpid($pid, 0) < 0 && $!{EINTR};
    my $status = $?;
    alarm 0;
    return $status;
}

# Words in POSIX shell quoting. (Text::ParseWords would take the last quote of 'a\' for an escaped one.)
sub split_words {
    my ($line) = @_;
    my @words;
    while ($line =~ /\G\s*((?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+)/g) {
        my $word = $1;
        $word =~ s/'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)/defined $1 ? $1 : defined $2 ? unescape($2) : $3/ge;
        push @words, $word;
    }
    return @words;
}

sub unescape {
    my ($quoted) = @_;
    $quoted =~ s/\\([\$`"\\])/$1/g;
    return $quoted;
}

sub spill {
    my ($path, $content) = @_;
    open(my $file, ">:raw", $path) or die "$path: $!\n";
    print $file $content;
    close $file or die "$path: $!\n";
}

sub slurp {
    my ($path) = @_;
    open(my $file, "<:raw", $path) or die "$path: $!\n";
    local $/;
    my $content = <$file>;
    return defined $content ? $content : "";
}
