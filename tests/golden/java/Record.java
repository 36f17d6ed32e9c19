import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.serializer.SerializerFeature;
import java.io.File;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.common.*;
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.common.sysflag.MessageSysFlag;
import org.apache.rocketmq.remoting.netty.NettyClientConfig;
import org.apache.rocketmq.remoting.netty.NettyServerConfig;
import org.apache.rocketmq.store.*;
import org.apache.rocketmq.store.config.FlushDiskType;
import org.apache.rocketmq.store.config.MessageStoreConfig;

/**
 * Runs the official broker in this process, stores messages of every kind, and says in JSON what its own classes
 * read of them.  Arguments: store folder, kind of store (plain, crc, ext, batch), port, the JSON file.
 *
 * "sent" is what was handed to the store, "records" what DispatchRequest and MessageDecoder say of the log,
 * "queues" and "keys" what the broker's queues and index answer, "checkpoint" what StoreCheckpoint reads after the end.
 */
public class Record {
    static final Base64.Encoder BASE64 = Base64.getEncoder();
    static final List<Map<String, Object>> SENT = new ArrayList<>();
    static final char KEY_END = 1;
    static final char ITEM_END = 2;
    static BrokerController broker;
    static int number;

    public static void main(String[] args) {
        try {
            record(args);
            Runtime.getRuntime().halt(0);
        } catch (Throwable trouble) {
            // The broker's threads would go on.
            trouble.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    static void record(String[] args) throws Exception {
        String root = args[0];
        String kind = args[1];
        Map<String, Object> said = new LinkedHashMap<>();
        said.put("version", Version.NAME);
        said.put("kind", kind);
        start(root, kind, Integer.parseInt(args[2]));
        switch (kind) {
            case "plain":
                plain();
                break;
            case "crc":
                crc();
                break;
            case "ext":
                Version.registerFilters(broker);
                ext();
                break;
            case "batch":
                Version.batchTopic(broker, "batched");
                batched();
                break;
            default:
                throw new IllegalArgumentException(kind);
        }
        tables();
        while (broker.getMessageStore().dispatchBehindBytes() > 0) {
            Thread.sleep(10);
        }
        said.put("sent", SENT);
        said.put("records", records());
        said.put("queues", Version.queues(broker, queueNames()));
        said.put("keys", keys());
        broker.shutdown();
        said.put("checkpoint", Version.checkpoint(Paths.get(root, "checkpoint").toString()));
        Files.write(Paths.get(args[3]), JSON.toJSONString(said, SerializerFeature.PrettyFormat, SerializerFeature.MapSortField)
            .getBytes(StandardCharsets.UTF_8));
    }

    static void start(String root, String kind, int port) throws Exception {
        BrokerConfig config = new BrokerConfig();
        config.setBrokerName("golden");
        config.setBrokerIP1("127.0.0.1");
        config.setEnablePropertyFilter(true);
        config.setEnableCalcFilterBitMap(kind.equals("ext"));
        NettyServerConfig server = new NettyServerConfig();
        server.setListenPort(port);
        MessageStoreConfig store = new MessageStoreConfig();
        store.setStorePathRootDir(root);
        store.setStorePathCommitLog(root + File.separator + "commitlog");
        store.setMappedFileSizeCommitLog(1024 * 1024);
        store.setMappedFileSizeConsumeQueue(100 * 20);
        store.setMappedFileSizeConsumeQueueExt(1000);
        store.setMaxHashSlotNum(50);
        store.setMaxIndexNum(400);
        store.setFlushDiskType(FlushDiskType.SYNC_FLUSH);
        store.setHaListenPort(port + 1);
        store.setEnableConsumeQueueExt(kind.equals("ext"));
        Version.configure(store, kind);
        broker = new BrokerController(config, server, new NettyClientConfig(), store);
        if (!broker.initialize()) {
            throw new IllegalStateException("the broker does not initialize");
        }
        broker.start();
    }

    // What is stored.

    static void plain() throws Exception {
        put("t", 0, "first", "");
        put("t", 1, "tags", pairs("TAGS", "red"));
        put("t", 0, "tags outside of Latin", pairs("TAGS", "grün-\u4e2d\ud83d\ude00"));
        put("t", 0, "a negative hash", pairs("TAGS", "polygenelubricants"));
        put("t", 1, "keys", pairs("KEYS", "k1 k2  k3", "UNIQ_KEY", unique()));
        put("t", 0, "", pairs("KEYS", "empty-body"));
        put("t", 0, "no last separator", "TAGS" + KEY_END + "open");
        put("t", 0, "a duplicate wins last", pairs("TAGS", "one", "TAGS", "two"));
        put("t", 0, "odd items", "A" + KEY_END + ITEM_END + KEY_END + "b" + ITEM_END + ITEM_END + pairs("TAGS", "x"));
        put("t", 0, "everything", pairs("KEYS", "all", "TAGS", "all", "UNIQ_KEY", unique(), "WAIT", "false", "CLUSTER", "c",
            "MSG_REGION", "r", "TRACE_ON", "true", "__SHARDINGKEY", "s", "user key", "user value \u00fc", "BUYER_ID", "7"));
        put("Topic-" + repeat("x", 120), 3, "a topic of 126 letters", pairs("TAGS", "red"));
        // 5.5.0 dispatches nothing any more behind a message of a retry topic that has no properties.
        put("%RETRY%" + repeat("g", 120), 0, "127: still one byte", pairs("TAGS", "red"));
        if (Version.LONG_TOPICS) {
            put("%RETRY%" + repeat("g", 121), 0, "128: two bytes", pairs("KEYS", "long"));
            put("%RETRY%" + repeat("h", 248), 0, "255: the longest", pairs("TAGS", "red", "KEYS", "longest"));
        }
        MessageExtBrokerInner inner = inner("t", 1, "numbers".getBytes(StandardCharsets.UTF_8), pairs("TAGS", "red"));
        inner.setFlag(-7);
        inner.setReconsumeTimes(3);
        inner.setBornTimestamp(-1);
        inner.setSysFlag(MessageSysFlag.COMPRESSED_FLAG | 0x2 | 0x300);
        put(inner);
        inner = inner("v6", 0, "born on v6".getBytes(StandardCharsets.UTF_8), pairs("KEYS", "v6"));
        inner.setBornHost(address("2001:db8::17", 54321));
        put(inner);
        inner = inner("v6", 0, "stored on v6".getBytes(StandardCharsets.UTF_8), pairs("KEYS", "v6"));
        inner.setStoreHost(address("2001:db8::1", 10911));
        put(inner);
        inner = inner("v6", 0, "both".getBytes(StandardCharsets.UTF_8), pairs("KEYS", "v6", "UNIQ_KEY", unique()));
        inner.setBornHost(address("2001:db8::17", 54321));
        inner.setStoreHost(address("2001:db8::1", 10911));
        put(inner);
        transactions();
        batch("t", 1, true);
        put("t", 2, "delayed", pairs("TAGS", "red", "DELAY", "18", "KEYS", "later"));
        put("t", 2, "delayed beyond the levels", pairs("DELAY", "99"));
        // Over the end of the first file.
        put("big", 0, repeat("0123456789", 60_000), pairs("KEYS", "big1"));
        put("big", 0, repeat("abcdefghij", 60_000), pairs("KEYS", "big2"));
        for (int at = 0; at < 120; at++) {
            put("many", 0, "message " + at, pairs("KEYS", "many-" + at % 7, "UNIQ_KEY", unique()));
        }
    }

    static void transactions() throws Exception {
        int[] types = {MessageSysFlag.TRANSACTION_PREPARED_TYPE, MessageSysFlag.TRANSACTION_COMMIT_TYPE,
            MessageSysFlag.TRANSACTION_ROLLBACK_TYPE, MessageSysFlag.TRANSACTION_NOT_TYPE};
        for (int type : types) {
            MessageExtBrokerInner inner = inner("transactions", 0, ("type " + type).getBytes(StandardCharsets.UTF_8),
                pairs("KEYS", "type-" + type, "TAGS", "red"));
            inner.setSysFlag(type);
            inner.setPreparedTransactionOffset(type == 0 ? 0 : 1234567890123L + type);
            put(inner);
        }
    }

    static void crc() throws Exception {
        put("t", 0, "no properties", "");
        put("t", 0, "", pairs("KEYS", "empty-body"));
        put("t", 0, "properties", pairs("TAGS", "red", "KEYS", "k"));
        put("t", 0, "no last separator", "TAGS" + KEY_END + "open");
        put("t", 0, "a wrong one first", pairs("__CRC32#", "0000000000", "TAGS", "red"));
        put("t", 0, "a wrong one last", pairs("TAGS", "red", "__CRC32#", "123"));
        put("%RETRY%" + repeat("g", 121), 0, "two bytes of topic length", pairs("KEYS", "long"));
        batch("t", 1, false);
        transactions();
        MessageExtBrokerInner inner = inner("v6", 0, "v6".getBytes(StandardCharsets.UTF_8), pairs("KEYS", "v6"));
        inner.setBornHost(address("2001:db8::17", 54321));
        inner.setStoreHost(address("2001:db8::1", 10911));
        put(inner);
        put("t", 0, "delayed", pairs("DELAY", "18"));
        for (int at = 0; at < 50; at++) {
            put("t", 2, repeat("x", at * 7), pairs("TAGS", "t" + at));
        }
    }

    static void ext() throws Exception {
        for (int at = 0; at < 60; at++) {
            put("filtered", at % 2, "filtered " + at, pairs("TAGS", "t" + at % 3, "color", at % 5 == 0 ? "red" : "blue"));
            put("unfiltered", 0, "unfiltered " + at, at % 4 == 0 ? "" : pairs("TAGS", "t" + at % 3));
        }
        put("unfiltered", 0, "delayed", pairs("DELAY", "18"));
    }

    static void batched() throws Exception {
        for (int at = 0; at < 130; at++) {
            List<Message> messages = new ArrayList<>();
            for (int item = 0; item <= at % 4; item++) {
                Message message = new Message("batched", "t" + item, "key-" + at + "-" + item,
                    ("inner " + at + "." + item).getBytes(StandardCharsets.UTF_8));
                message.setFlag(item);
                messages.add(message);
            }
            int queueId = at % 10 == 9 ? 1 : 0;
            if (at % 7 == 6) {
                put("batched", queueId, "a single one " + at, pairs("TAGS", "single", "KEYS", "single-" + at));
            } else {
                put(Version.innerBatch(broker, inner("batched", queueId, Version.encode(messages),
                    pairs("UNIQ_KEY", unique(), "TAGS", "outer")), messages.size()));
            }
        }
    }

    static void batch(String topic, int queueId, boolean withItemProperties) throws Exception {
        List<Message> messages = new ArrayList<>();
        for (int item = 0; item < 3; item++) {
            Message message = new Message(topic, ("item " + item).getBytes(StandardCharsets.UTF_8));
            message.setFlag(item);
            if (withItemProperties && item > 0) {
                message.setKeys("item-" + item);
                message.setTags("t" + item);
            }
            messages.add(message);
        }
        String properties = pairs("TAGS", "of-the-batch", "CLUSTER", "c");
        MessageExtBatch batch = new MessageExtBatch();
        fill(batch, topic, queueId, Version.encode(messages), properties);
        // So it goes into the records: in the order of a hash table, in release line 4 without the last separator.
        Map<String, Object> told = told(batch, MessageDecoder.messageProperties2String(batch.getProperties()));
        told.put("batch", true);
        say(told, broker.getMessageStore().putMessages(batch));
    }

    static void put(String topic, int queueId, String body, String properties) throws Exception {
        put(inner(topic, queueId, body.getBytes(StandardCharsets.UTF_8), properties));
    }

    static void put(MessageExtBrokerInner inner) throws Exception {
        Map<String, Object> told = told(inner, inner.getPropertiesString());
        say(told, broker.getMessageStore().putMessage(inner));
        // What the store makes of a delayed message is what is stored.
        told.put("topic", inner.getTopic());
        told.put("queueId", inner.getQueueId());
        told.put("properties", BASE64.encodeToString(inner.getPropertiesString().getBytes(StandardCharsets.UTF_8)));
    }

    static void say(Map<String, Object> told, PutMessageResult result) {
        if (result.getPutMessageStatus() != PutMessageStatus.PUT_OK) {
            throw new IllegalStateException(told.get("topic") + ": " + result.getPutMessageStatus());
        }
        AppendMessageResult appended = result.getAppendMessageResult();
        told.put("logOffset", appended.getWroteOffset());
        told.put("queueOffset", appended.getLogicsOffset());
        told.put("bytes", appended.getWroteBytes());
        told.put("storeTimestamp", appended.getStoreTimestamp());
        told.put("messageIds", appended.getMsgId());
        SENT.add(told);
    }

    static MessageExtBrokerInner inner(String topic, int queueId, byte[] body, String properties) throws Exception {
        MessageExtBrokerInner inner = new MessageExtBrokerInner();
        fill(inner, topic, queueId, body, properties);
        inner.setPropertiesString(properties);
        inner.setTagsCode(MessageExtBrokerInner.tagsString2tagsCode(TopicFilterType.SINGLE_TAG, inner.getTags()));
        return inner;
    }

    static void fill(MessageExt inner, String topic, int queueId, byte[] body, String properties)
        throws Exception {
        inner.setTopic(topic);
        inner.setQueueId(queueId);
        inner.setBody(body);
        MessageAccessor.setProperties(inner, MessageDecoder.string2messageProperties(properties));
        inner.setBornTimestamp(1700000000000L + number++);
        inner.setBornHost(address("10.1.2.3", 45678));
        inner.setStoreHost(address("127.0.0.1", 10911));
    }

    static Map<String, Object> told(MessageExt inner, String properties) throws Exception {
        Map<String, Object> told = new TreeMap<>();
        told.put("topic", inner.getTopic());
        told.put("queueId", inner.getQueueId());
        told.put("flag", inner.getFlag());
        told.put("sysFlag", inner.getSysFlag());
        told.put("bornTimestamp", inner.getBornTimestamp());
        told.put("bornHost", host((InetSocketAddress) inner.getBornHost()));
        told.put("storeHost", host((InetSocketAddress) inner.getStoreHost()));
        told.put("reconsumeTimes", inner.getReconsumeTimes());
        told.put("preparedOffset", inner.getPreparedTransactionOffset());
        told.put("body", BASE64.encodeToString(inner.getBody()));
        told.put("properties", BASE64.encodeToString(properties.getBytes(StandardCharsets.UTF_8)));
        return told;
    }

    // What the broker itself reads.

    static List<Map<String, Object>> records() throws Exception {
        List<Map<String, Object>> all = new ArrayList<>();
        CommitLog log = ((DefaultMessageStore) broker.getMessageStore()).getCommitLog();
        long offset = log.getMinOffset();
        while (offset < log.getMaxOffset()) {
            SelectMappedBufferResult rest = log.getData(offset);
            ByteBuffer bytes = rest.getByteBuffer();
            ByteBuffer again = bytes.duplicate();
            DispatchRequest request = log.checkMessageAndReturnSize(bytes, true, false);
            if (request.getMsgSize() == 0) {
                offset = log.rollNextFile(offset);
            } else if (request.getMsgSize() < 0 || !request.isSuccess()) {
                throw new IllegalStateException("no record at " + offset);
            } else {
                all.add(record(request, MessageDecoder.decode(again, true, false)));
                offset += request.getMsgSize();
            }
            rest.release();
        }
        return all;
    }

    static Map<String, Object> record(DispatchRequest request, MessageExt message) {
        Map<String, Object> record = new TreeMap<>();
        record.put("logOffset", request.getCommitLogOffset());
        record.put("size", request.getMsgSize());
        record.put("tagsCode", request.getTagsCode());
        record.put("keys", request.getKeys());
        record.put("uniqKey", request.getUniqKey());
        record.put("topic", message.getTopic());
        record.put("queueId", message.getQueueId());
        record.put("flag", message.getFlag());
        record.put("queueOffset", message.getQueueOffset());
        record.put("sysFlag", message.getSysFlag());
        record.put("bornTimestamp", message.getBornTimestamp());
        record.put("bornHost", host((InetSocketAddress) message.getBornHost()));
        record.put("storeTimestamp", message.getStoreTimestamp());
        record.put("storeHost", host((InetSocketAddress) message.getStoreHost()));
        record.put("reconsumeTimes", message.getReconsumeTimes());
        record.put("preparedOffset", message.getPreparedTransactionOffset());
        record.put("bodyCrc", message.getBodyCRC());
        record.put("body", message.getBody() == null ? "" : BASE64.encodeToString(message.getBody()));
        Map<String, String> properties = message.getProperties();
        record.put("properties", properties == null ? new TreeMap<>() : new TreeMap<>(properties));
        record.put("messageId", message.getMsgId());
        return record;
    }

    static List<String[]> queueNames() {
        List<String[]> names = new ArrayList<>();
        for (String folder : new String[] {"consumequeue", "batchconsumequeue"}) {
            File[] topics = new File(broker.getMessageStoreConfig().getStorePathRootDir(), folder).listFiles();
            for (File topic : topics == null ? new File[0] : topics) {
                for (File queue : topic.listFiles()) {
                    names.add(new String[] {topic.getName(), queue.getName()});
                }
            }
        }
        return names;
    }

    /** Every key that was sent, and one that was not: the log offsets that the index answers. */
    static List<Map<String, Object>> keys() throws Exception {
        Map<String, Map<String, Object>> found = new TreeMap<>();
        for (Map<String, Object> record : records()) {
            String all = record.get("keys") + " " + record.get("uniqKey") + " nobody's";
            for (String key : all.split(" ")) {
                if (!key.isEmpty() && !key.equals("null")) {
                    String topic = (String) record.get("topic");
                    Map<String, Object> answer = new TreeMap<>();
                    answer.put("topic", topic);
                    answer.put("key", key);
                    answer.put("logOffsets", offsets(topic, key));
                    found.put(topic + "#" + key, answer);
                }
            }
        }
        return new ArrayList<>(found.values());
    }

    static List<Long> offsets(String topic, String key) {
        List<Long> offsets = new ArrayList<>();
        QueryMessageResult result = broker.getMessageStore().queryMessage(topic, key, 64, 0, Long.MAX_VALUE);
        for (ByteBuffer bytes : result.getMessageBufferList()) {
            offsets.add(bytes.getLong(bytes.position() + 28));
        }
        result.release();
        return offsets;
    }

    // Tables.

    static void tables() {
        broker.getConsumerOffsetManager().commitOffset("127.0.0.1", "group-a", "t", 0, 3);
        broker.getConsumerOffsetManager().commitOffset("127.0.0.1", "group-a", "t", 1, 2);
        broker.getConsumerOffsetManager().commitOffset("127.0.0.1", "group-b", "t", 0, 1);
        Version.tables(broker);
        broker.getConsumerOffsetManager().persist();
        broker.getConsumerFilterManager().persist();
    }

    // Small things.

    static String pairs(String... texts) {
        StringBuilder all = new StringBuilder();
        for (int at = 0; at < texts.length; at += 2) {
            all.append(texts[at]).append(KEY_END).append(texts[at + 1]).append(ITEM_END);
        }
        return all.toString();
    }

    static String unique() {
        return String.format("0A010203000018B4AAC2%012X", number);
    }

    static String repeat(String text, int times) {
        StringBuilder all = new StringBuilder();
        for (int at = 0; at < times; at++) {
            all.append(text);
        }
        return all.toString();
    }

    static InetSocketAddress address(String host, int port) throws Exception {
        return new InetSocketAddress(InetAddress.getByName(host), port);
    }

    static String host(InetSocketAddress address) {
        return address.getAddress().getHostAddress() + " " + address.getPort();
    }
}
