import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import javax.management.MBeanServerConnection;
import javax.management.ObjectName;
import javax.management.remote.JMXConnector;
import javax.management.remote.JMXConnectorFactory;
import javax.management.remote.JMXServiceURL;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import javax.rmi.ssl.SslRMIClientSocketFactory;

/**
 * Drives one Cassandra node over JMX for as long as its standard input is open. It needs no class of Cassandra.
 *
 * The first line says how JMX is entered: user, password, "tls" or nothing, the authorities' certificates and ours (PEM), our key
 * (PKCS #8), with tabs between and in base64 but for the third. Its answer comes once JMX is entered.
 *
 * A request is a line of fields with tabs between; so is its answer, whose first field is "ok" or "failed". A failure's second
 * field is the class of the error, its third the text, its fourth the classes of all errors that led to it.
 */
public final class NodeControl {
    private static final String TEXTS = String[].class.getName();
    private static final String TEXT = String.class.getName();

    private final MBeanServerConnection node;
    private final ObjectName storage = new ObjectName("org.apache.cassandra.db:type=StorageService");

    private NodeControl(MBeanServerConnection node) throws Exception {
        this.node = node;
    }

    public static void main(String[] place) throws Exception {
        PrintStream answers = new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);
        String url = "service:jmx:rmi:///jndi/rmi://" + place[0] + ":" + place[1] + "/jmxrmi";
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (JMXConnector connector = JMXConnectorFactory.connect(new JMXServiceURL(url), entry(requests.readLine().split("\t", -1)))) {
            NodeControl control = new NodeControl(connector.getMBeanServerConnection());
            answers.println("ok");
            for (String line = requests.readLine(); line != null; line = requests.readLine()) {
                answers.println(control.answer(line.split("\t", -1)));
            }
        } catch (Exception error) {
            answers.println(failure(error));
        }
    }

    private static Map<String, Object> entry(String[] given) throws Exception {
        Map<String, Object> told = new HashMap<>();
        if (!given[0].isEmpty()) {
            String[] who = {new String(bytes(given[0]), StandardCharsets.UTF_8), new String(bytes(given[1]), StandardCharsets.UTF_8)};
            told.put(JMXConnector.CREDENTIALS, who);
        }
        if (given[2].equals("tls")) {
            // The registry and the server are both asked through factories that take what is trusted by default.
            SSLContext.setDefault(secured(bytes(given[3]), bytes(given[4]), bytes(given[5])));
            told.put("com.sun.jndi.rmi.factory.socket", new SslRMIClientSocketFactory());
        }
        return told;
    }

    private static SSLContext secured(byte[] authorities, byte[] own, byte[] key) throws Exception {
        KeyStore trusted = null; // that of this Java
        if (authorities.length > 0) {
            trusted = empty();
            for (Certificate one : certificates(authorities)) {
                trusted.setCertificateEntry("ca" + trusted.size(), one);
            }
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        KeyStore shown = empty();
        char[] nothing = new char[0]; // guards what is in this process's memory only
        if (key.length > 0) {
            Certificate[] chain = certificates(own).toArray(new Certificate[0]);
            KeyFactory keys = KeyFactory.getInstance(chain[0].getPublicKey().getAlgorithm());
            shown.setKeyEntry("own", keys.generatePrivate(new PKCS8EncodedKeySpec(key)), nothing, chain);
        }
        KeyManagerFactory managers = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        managers.init(shown, nothing);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(managers.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    private static KeyStore empty() throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        return store;
    }

    private static Collection<? extends Certificate> certificates(byte[] pem) throws Exception {
        return CertificateFactory.getInstance("X.509").generateCertificates(new ByteArrayInputStream(pem));
    }

    private static byte[] bytes(String text) {
        return Base64.getDecoder().decode(text);
    }

    private String answer(String[] fields) {
        try {
            List<String> line = new ArrayList<>(List.of("ok"));
            line.addAll(carryOut(fields[0], Arrays.copyOfRange(fields, 1, fields.length)));
            return String.join("\t", line);
        } catch (Exception error) {
            return failure(error);
        }
    }

    private List<String> carryOut(String request, String[] given) throws Exception {
        switch (request) {
            case "read": // names of attributes of texts or of lists of texts, which come back with line feeds as "|"
                List<String> values = new ArrayList<>();
                for (String name : given) {
                    Object value = node.getAttribute(storage, name);
                    Object[] items = value instanceof Object[] ? (Object[]) value
                        : value instanceof List ? ((List<?>) value).toArray() : new Object[] {value};
                    List<String> texts = new ArrayList<>();
                    for (Object item : items) {
                        texts.add(plain(String.valueOf(item)));
                    }
                    values.add(String.join("|", texts));
                }
                return values;
            case "snapshot": // tag, lifetime, keyspaces …: flushes, then links every file
                Map<String, String> options = Map.of("skipFlush", "false", "ttl", given[1]);
                Object[] taken = {given[0], options, Arrays.copyOfRange(given, 2, given.length)};
                node.invoke(storage, "takeSnapshot", taken, new String[] {TEXT, Map.class.getName(), TEXTS});
                return List.of();
            case "tags": // of all snapshots
                return new ArrayList<>(new TreeSet<>(((Map<String, ?>) node.getAttribute(storage, "SnapshotDetails")).keySet()));
            case "clear": // tag: in all keyspaces; one that is not there is no failure
                node.invoke(storage, "clearSnapshot", new Object[] {given[0], new String[0]}, new String[] {TEXT, TEXTS});
                return List.of();
            case "load": // a folder …/KEYSPACE/TABLE: streams its tables' rows to the nodes that own them
                node.invoke(storage, "bulkLoad", new Object[] {given[0]}, new String[] {TEXT});
                return List.of();
            case "still": // keyspace: its tables are not compacted any more
                node.invoke(storage, "disableAutoCompaction", new Object[] {given[0], new String[0]}, new String[] {TEXT, TEXTS});
                return List.of();
            case "verify": // keyspace, table: reads every row of every file, with its checksums; answers 0 if all is well
                String flag = boolean.class.getName();
                Object[] asked = {true, false, false, false, false, false, given[0], new String[] {given[1]}};
                String[] kinds = {flag, flag, flag, flag, flag, flag, TEXT, TEXTS};
                return List.of(String.valueOf(node.invoke(storage, "verify", asked, kinds)));
            default:
                throw new IllegalArgumentException(request);
        }
    }

    private static String failure(Throwable error) {
        Throwable root = error;
        StringBuilder kinds = new StringBuilder(root.getClass().getName());
        while (root.getCause() != null && root.getCause() != root) {
            root = root.getCause();
            kinds.append(' ').append(root.getClass().getName());
        }
        return "failed\t" + root.getClass().getName() + "\t" + plain(String.valueOf(root.getMessage())) + "\t" + kinds;
    }

    private static String plain(String text) {
        return text.replaceAll("[\\t\\r\\n]+", " ");
    }
}
