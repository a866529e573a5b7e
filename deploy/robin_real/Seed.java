// Fills the queue of a Robin that does not run, with its own classes: by its API 50,000 items take
// twenty minutes. Started with Robin's class path:
//   java -cp robin.jar:lib/* Seed.java SETTINGS ITEMS DOMAIN PORT LATER
// Each is a mail to DOMAIN at 127.0.0.1:PORT, due now, or in LATER seconds, where that is not 0.

import com.mimecast.robin.config.ConfigLoader;
import com.mimecast.robin.endpoints.ApiEndpointUtils;
import com.mimecast.robin.main.Factories;
import com.mimecast.robin.queue.PersistentQueue;
import com.mimecast.robin.queue.QueueFiles;
import com.mimecast.robin.queue.QueueItem;
import com.mimecast.robin.queue.QueueListFilter;
import com.mimecast.robin.queue.QueueMutation;
import com.mimecast.robin.queue.QueueMutationBatch;
import com.mimecast.robin.queue.RelaySession;
import com.mimecast.robin.smtp.session.Session;

import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

public class Seed {
    private static final int BATCH = 1000;

    public static void main(String[] args) {
        int code = 0;
        try {
            fill(args);
        } catch (Exception | LinkageError error) {
            error.printStackTrace();
            code = 1;
        }
        System.exit(code); // threads of the queue would go on
    }

    private static void fill(String[] args) throws Exception {
        ConfigLoader.load(args[0]);
        int items = Integer.parseInt(args[1]);
        String domain = args[2];
        int port = Integer.parseInt(args[3]);
        long later = Long.parseLong(args[4]);

        PersistentQueue<RelaySession> queue = PersistentQueue.getInstance();
        List<RelaySession> made = new ArrayList<>();
        for (int n = 0; n < items; n++) {
            made.add(mail(n, domain, port));
            if (made.size() == BATCH || n == items - 1) {
                queue.applyMutations(new QueueMutationBatch<>(List.of(), made));
                made.clear();
            }
        }
        if (later > 0) {
            putOff(queue, Instant.now().getEpochSecond() + later);
        }
        queue.close();
    }

    private static RelaySession mail(int n, String domain, int port) {
        Map<String, Object> envelope = changeable(
                "mail", "sender" + n + "@north.example",
                "rcpt", List.of("n" + n + "@" + domain),
                "subject", "Number " + n,
                "message", "This is mail number " + n + ".");
        Map<String, Object> asked = changeable(
                "mx", List.of("127.0.0.1"),
                "port", (double) port,
                "tls", false,
                "ehlo", "north.example",
                "envelopes", List.of(envelope));
        Session session = Factories.getSession();
        session.map(ApiEndpointUtils.buildCaseConfig(asked));
        // Of a message without bytes Robin keeps no file, and delivers nothing.
        String text = "Subject: Number " + n + "\r\n\r\nThis is mail number " + n + ".\r\n";
        session.getEnvelopes().getFirst().setBytes(text.getBytes(StandardCharsets.UTF_8));
        RelaySession made = new RelaySession(session).setProtocol("ESMTP");
        QueueFiles.persistEnvelopeFiles(made);
        return made;
    }

    /** Name, value, name, value: Robin writes into what it is given. */
    private static Map<String, Object> changeable(Object... pairs) {
        Map<String, Object> made = new HashMap<>();
        for (int n = 0; n < pairs.length; n += 2) {
            made.put((String) pairs[n], pairs[n + 1]);
        }
        return made;
    }

    private static void putOff(PersistentQueue<RelaySession> queue, long until) {
        List<QueueMutation<RelaySession>> batch = new ArrayList<>();
        List<QueueItem<RelaySession>> all = queue.list(0, Integer.MAX_VALUE, QueueListFilter.activeOnly()).items();
        for (QueueItem<RelaySession> item : all) {
            batch.add(QueueMutation.reschedule(item, until, "451 4.2.1 Try again later"));
            if (batch.size() == BATCH) {
                queue.applyMutations(new QueueMutationBatch<>(batch, List.of()));
                batch.clear();
            }
        }
        queue.applyMutations(new QueueMutationBatch<>(batch, List.of()));
    }
}
